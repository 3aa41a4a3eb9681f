//! Who decides what an agent asks before it acts.
//!
//! An agent describes its own request, so a rule is only as true as the agent: it saves questions, and is no wall. The
//! wall is the VM.

use std::fmt;

/// The policy of one session. It decides how the agent is launched, too: one that must not act unasked is started in its
/// asking mode, one that may do everything in the mode that asks nothing, because its VM is the sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum PermissionPolicy {
    /// Requests go to the host's handler; without one they are rejected.
    #[default]
    Ask,
    /// Nothing is asked.
    AllowAll,
    /// Every request is rejected.
    RejectAll,
}

impl PermissionPolicy {
    /// Whether the agent has to be started so that it asks before it acts.
    #[must_use]
    pub fn asks(self) -> bool {
        matches!(self, Self::Ask | Self::RejectAll)
    }
}

/// The answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PermissionReply {
    /// Yes, this time.
    Once,
    /// Yes, and to exactly the same from now on.
    Always,
    /// No.
    Reject,
}

impl PermissionReply {
    /// The word for it in events.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Once => "once",
            Self::Always => "always",
            Self::Reject => "reject",
        }
    }
}

/// What a rule does with the requests that it fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RuleAction {
    /// They are allowed.
    Allow,
    /// They are rejected.
    Reject,
    /// They go to the handler.
    Ask,
}

/// A rule beside the policy [`PermissionPolicy::Ask`]; of several that fit the last one decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PermissionRule {
    /// What it does.
    pub action: RuleAction,
    /// The kind of tool it fits, in ACP's words: `edit`, `execute`...; any where it is absent.
    pub tool_kind: Option<String>,
    /// The paths it fits; any where it is absent. A request that names none fits no rule by path. What allows has to fit
    /// all paths of a request, what rejects or asks any of them.
    pub path: Option<PathPattern>,
}

/// Absolute paths, with `*` for a part of a name and `**` for any number of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPattern(Vec<String>);

/// A pattern that fits nothing an agent could mean.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Paths in a VM are absolute.
    #[error("Path must be absolute: {0}")]
    Relative(String),
    /// Where `..` leads depends on links.
    #[error("Path must be normalized: {0}")]
    NotNormalized(String),
}

impl PathPattern {
    /// Reads a pattern such as `/work/src/**` or `/work/*.md`.
    pub fn parse(pattern: &str) -> Result<Self, PatternError> {
        if !pattern.starts_with('/') {
            return Err(PatternError::Relative(pattern.to_owned()));
        }
        let parts: Vec<String> = names(pattern).map(str::to_owned).collect();
        if parts.iter().any(|part| part == "..") {
            return Err(PatternError::NotNormalized(pattern.to_owned()));
        }
        Ok(Self(parts))
    }

    /// Whether a path is one of these. One that isn't absolute, or has `..` in it, never is.
    #[must_use]
    pub fn fits(&self, path: &str) -> bool {
        let parts: Vec<&str> = names(path).collect();
        path.starts_with('/') && !parts.contains(&"..") && fits_parts(&self.0, &parts)
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0.join("/"))
    }
}

fn names(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".")
}

fn fits_parts(pattern: &[String], path: &[&str]) -> bool {
    let any = |part: &String| part == "**";
    fits_all(pattern, path, any, |part, name| name_fits(part, name))
}

/// Whether a name fits a pattern with `*` for any part of it.
#[must_use]
pub fn name_fits(pattern: &str, name: &str) -> bool {
    fits_all(pattern.as_bytes(), name.as_bytes(), |c| *c == b'*', u8::eq)
}

/// Both sides from their beginnings; after a wildcard that has swallowed too little the comparison goes back to it, so
/// that no pattern costs more than the product of the two lengths.
fn fits_all<P, T>(
    pattern: &[P],
    items: &[T],
    is_any: impl Fn(&P) -> bool,
    fits: impl Fn(&P, &T) -> bool,
) -> bool {
    let (mut at, mut seen, mut back) = (0, 0, None);
    while seen < items.len() {
        match pattern.get(at) {
            Some(part) if is_any(part) => {
                back = Some((at + 1, seen));
                at += 1;
            }
            Some(part) if fits(part, &items[seen]) => {
                at += 1;
                seen += 1;
            }
            _ => {
                let Some((again, swallowed)) = back else { return false };
                back = Some((again, swallowed + 1));
                (at, seen) = (again, swallowed + 1);
            }
        }
    }
    pattern[at..].iter().all(is_any)
}

impl PermissionRule {
    /// Whether the rule is about a tool of this kind on these paths. What allows has to fit all of them, what doesn't any
    /// of them; where a path leads that has `..` in it nobody can tell, so that it is taken for one of the latter's.
    #[must_use]
    pub fn fits(&self, tool_kind: &str, paths: &[String]) -> bool {
        let kind_fits = self.tool_kind.as_deref().is_none_or(|kind| kind == tool_kind);
        let paths_fit = self.path.as_ref().is_none_or(|pattern| match self.action {
            RuleAction::Allow => !paths.is_empty() && paths.iter().all(|path| pattern.fits(path)),
            RuleAction::Reject | RuleAction::Ask => {
                paths.iter().any(|path| pattern.fits(path) || names(path).any(|name| name == ".."))
            }
        });
        kind_fits && paths_fit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_whole_paths() {
        for (pattern, path, fits) in [
            ("/work/**", "/work/a/b.rs", true),
            ("/work/**", "/work", true),
            ("/work/**", "/workshop/a", false),
            ("/work/*.md", "/work/README.md", true),
            ("/work/*.md", "/work/docs/a.md", false),
            ("/**/*.md", "/work/docs/a.md", true),
            ("/work/**/test/*", "/work/a/test/b/test/c", true),
            ("/work/**/test/*", "/work/a/test/b/test/c/d", false),
            ("/a*b*c", "/aXbYbZc", true),
            ("/", "/", true),
            ("/", "/x", false),
            ("/work/**", "/work/../etc/passwd", false),
            ("/**", "relative", false),
            ("/work//./a", "/work/a", true),
        ] {
            assert_eq!(PathPattern::parse(pattern).unwrap().fits(path), fits, "{pattern} {path}");
        }
        assert_eq!(PathPattern::parse("work"), Err(PatternError::Relative("work".to_owned())));
        assert_eq!(PathPattern::parse("/a/../b"), Err(PatternError::NotNormalized("/a/../b".to_owned())));
    }

    #[test]
    fn a_pattern_of_many_stars_ends_soon() {
        let pattern = PathPattern::parse(&format!("/{}", "**/a*a*a*/".repeat(50))).unwrap();
        assert!(!pattern.fits(&format!("/{}b", "aaaaaaaaaa/".repeat(200))));
    }

    #[test]
    fn a_rule_by_path_needs_all_paths_and_at_least_one() {
        let path = Some(PathPattern::parse("/work/**").unwrap());
        let rule = PermissionRule { action: RuleAction::Allow, tool_kind: Some("edit".to_owned()), path };
        let paths = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
        assert!(rule.fits("edit", &paths(&["/work/a", "/work/b"])));
        assert!(!rule.fits("edit", &paths(&["/work/a", "/etc/passwd"])));
        assert!(!rule.fits("edit", &[]));
        assert!(!rule.fits("execute", &paths(&["/work/a"])));
        let reject = PermissionRule { action: RuleAction::Reject, ..rule };
        assert!(reject.fits("edit", &paths(&["/etc/passwd", "/work/a"])), "one is enough");
        assert!(reject.fits("edit", &paths(&["/etc/../work/a"])), "nobody can tell");
        assert!(!reject.fits("edit", &paths(&["/etc/passwd"])) && !reject.fits("edit", &[]));
    }
}
