//! The public API, item by item, against the committed snapshot: programs outside the repository compile against it,
//! so a change must be seen in review. `AGENTOS_BLESS=1 cargo test -p agentos --test public_api` writes it anew.
//!
//! The sources are read with `syn`: what `lib.rs` exports, with the signatures of its public methods and the traits it
//! implements by hand or by derive.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use quote::ToTokens;
use syn::{Fields, ImplItem, Item, Visibility};

/// Tests run in their package's directory, which need not be where it was when they were compiled.
fn package() -> &'static Path {
    Path::new(".")
}

#[test]
fn the_public_api_is_the_committed_one() {
    let root = package();
    let snapshot = root.join("tests/public_api.txt");
    let actual = Api::read(&root.join("src")).to_string();
    if std::env::var_os("AGENTOS_BLESS").is_some() {
        std::fs::write(&snapshot, &actual).unwrap();
    }
    let expected = std::fs::read_to_string(&snapshot).unwrap_or_default();
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (old, new) = (lines(&expected), lines(&actual));
    let report: String = old
        .difference(&new)
        .map(|line| format!("- {line}\n"))
        .chain(new.difference(&old).map(|line| format!("+ {line}\n")))
        .collect();
    assert!(expected == actual, "the public API changed; bless it if that is meant:\n{report}");
}

/// The rule of the public dependencies, seen in the same text.
#[test]
fn no_signature_names_a_type_of_tonic_or_tokio() {
    let api = Api::read(&package().join("src")).to_string();
    for line in api.lines() {
        let foreign = ["tonic", "tokio", "prost", "hyper", "v1 ::"].iter().find(|name| line.contains(**name));
        assert!(foreign.is_none(), "{line}");
    }
}

#[derive(Default)]
struct Api {
    exported: BTreeSet<String>,
    /// The lines about each exported name.
    lines: BTreeMap<String, BTreeSet<String>>,
}

impl Api {
    fn read(src: &Path) -> Self {
        let mut files: Vec<PathBuf> = std::fs::read_dir(src)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
            .collect();
        files.sort();
        let parse = |path: &PathBuf| syn::parse_file(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut api = Self::default();
        for item in parse(&src.join("lib.rs")).items {
            if let Item::Use(item) = item
                && matches!(item.vis, Visibility::Public(_))
            {
                names(&item.tree, &mut api.exported);
            }
        }
        for item in files.iter().flat_map(|path| parse(path).items) {
            api.item(&item);
        }
        api
    }

    fn add(&mut self, name: &str, line: impl ToTokens) {
        let line = line.to_token_stream().to_string();
        self.lines.entry(name.to_owned()).or_default().insert(line);
    }

    fn item(&mut self, item: &Item) {
        match item {
            Item::Struct(item) if self.exported.contains(&item.ident.to_string()) => {
                let mut item = item.clone();
                keep_public(&mut item.fields);
                keep_attributes(&mut item.attrs);
                self.add(&item.ident.to_string(), &item);
            }
            Item::Enum(item) if self.exported.contains(&item.ident.to_string()) => {
                let mut item = item.clone();
                keep_attributes(&mut item.attrs);
                for variant in &mut item.variants {
                    keep_attributes(&mut variant.attrs);
                    for field in &mut variant.fields {
                        keep_attributes(&mut field.attrs);
                    }
                }
                self.add(&item.ident.to_string(), &item);
            }
            Item::Type(item) if self.exported.contains(&item.ident.to_string()) => {
                let mut item = item.clone();
                keep_attributes(&mut item.attrs);
                self.add(&item.ident.to_string(), &item);
            }
            Item::Impl(item) => self.implementation(item),
            Item::Macro(item) => self.expansion(item),
            _ => {}
        }
    }

    fn implementation(&mut self, item: &syn::ItemImpl) {
        let syn::Type::Path(path) = &*item.self_ty else { return };
        let Some(name) = path.path.segments.last().map(|segment| segment.ident.to_string()) else { return };
        if !self.exported.contains(&name) {
            return;
        }
        if let Some((_, implemented, _)) = &item.trait_ {
            // tokio's traits are offered beside our own methods, as a way to read and write and in no signature.
            if ["AsyncRead", "AsyncWrite", "Drop"].iter().any(|name| implemented.is_ident(name)) {
                return;
            }
            let generics = &item.generics;
            let text =
                format!("impl {} {} for {name}", generics.to_token_stream(), implemented.to_token_stream());
            self.lines.entry(name).or_default().insert(text);
            return;
        }
        for member in &item.items {
            match member {
                ImplItem::Fn(method) if matches!(method.vis, Visibility::Public(_)) => {
                    self.add(&name, &method.sig);
                }
                // The setters that several builders share.
                ImplItem::Macro(call) => self.add(&name, &call.mac),
                _ => {}
            }
        }
    }

    /// `into_future!(Exec => ExecResult)` and `from_bytes_and_strings!(Content)`.
    fn expansion(&mut self, item: &syn::ItemMacro) {
        let tokens = item.mac.tokens.to_string();
        if let Some(name) = &item.ident {
            // What a macro defines: the public functions in its text.
            let signatures = tokens.split("pub fn ").skip(1).filter_map(|text| text.split(" {").next());
            let macro_name = format!("{name}!");
            for signature in signatures {
                self.lines.entry(macro_name.clone()).or_default().insert(format!("fn {signature}"));
                self.exported.insert(macro_name.clone());
            }
            return;
        }
        let Some(name) = tokens.split_whitespace().next().map(str::to_owned) else { return };
        if self.exported.contains(&name) {
            self.lines.entry(name).or_default().insert(item.mac.to_token_stream().to_string());
        }
    }
}

impl std::fmt::Display for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = String::new();
        for name in &self.exported {
            writeln!(text, "{name}")?;
            for line in self.lines.get(name).into_iter().flatten() {
                writeln!(text, "    {line}")?;
            }
        }
        f.write_str(&text)
    }
}

fn names(tree: &syn::UseTree, into: &mut BTreeSet<String>) {
    match tree {
        syn::UseTree::Path(path) => names(&path.tree, into),
        syn::UseTree::Group(group) => group.items.iter().for_each(|tree| names(tree, into)),
        syn::UseTree::Name(name) => {
            into.insert(name.ident.to_string());
        }
        other => panic!("exports are named one by one: {}", other.to_token_stream()),
    }
}

/// Private fields are not the API's, but that there are some is: the struct can't be built from outside.
fn keep_public(fields: &mut Fields) {
    if let Fields::Named(named) = fields {
        let all = std::mem::take(&mut named.named);
        for mut field in all {
            if matches!(field.vis, Visibility::Public(_)) {
                keep_attributes(&mut field.attrs);
                named.named.push(field);
            }
        }
    } else if let Fields::Unnamed(unnamed) = fields {
        unnamed.unnamed.clear();
    }
}

/// Of attributes only derives and `non_exhaustive` matter to callers.
fn keep_attributes(attributes: &mut Vec<syn::Attribute>) {
    attributes.retain(|attribute| {
        ["derive", "non_exhaustive", "default"].iter().any(|name| attribute.path().is_ident(name))
    });
}
