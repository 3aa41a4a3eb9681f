//! The one rule for paths that users name, checked where they come in and again inside the VM, which trusts nobody.

/// Why a path is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    #[error("path is not absolute")]
    NotAbsolute,
    #[error("path climbs")]
    NotNormalized,
    #[error("path contains NUL")]
    Nul,
}

/// An absolute path without `.`, empty components or a trailing slash; one that climbs is refused. Of any length.
pub fn clean(path: &[u8]) -> Result<Vec<u8>, PathFault> {
    if path.contains(&0) {
        return Err(PathFault::Nul);
    }
    if path.first() != Some(&b'/') {
        return Err(PathFault::NotAbsolute);
    }
    let mut clean = Vec::with_capacity(path.len());
    for component in path.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(PathFault::NotNormalized),
            name => {
                clean.push(b'/');
                clean.extend_from_slice(name);
            }
        }
    }
    if clean.is_empty() {
        clean.push(b'/');
    }
    Ok(clean)
}
