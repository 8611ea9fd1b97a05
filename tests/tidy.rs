//! Rules of the code base that no compiler checks: who may import whom, heads of files, sizes, characters.

use std::path::{Path, PathBuf};

use mortar_tests::real::tool::source_tree;

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("source directory") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            if !path.ends_with("target") {
                sources(&path, out);
            }
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            out.push(path);
        }
    }
}

fn all_sources() -> Vec<(PathBuf, String)> {
    let mut paths = Vec::new();
    for part in ["protocol", "server", "client", "benches", "tests"] {
        sources(&source_tree().join(part), &mut paths);
    }
    assert!(paths.len() > 40, "only {} sources found", paths.len());
    paths
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("source is text");
            (path, text)
        })
        .collect()
}

fn complain(rule: &str, offenders: Vec<String>) {
    assert!(
        offenders.is_empty(),
        "{rule}:\n  {}",
        offenders.join("\n  ")
    );
}

#[test]
fn every_file_says_what_it_is() {
    let offenders = all_sources()
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//!") && !text.starts_with("#!["))
        .map(|(path, _)| path.display().to_string())
        .collect();
    complain("every source file opens with `//!`", offenders);
}

#[test]
fn sources_are_ascii() {
    let offenders = all_sources()
        .into_iter()
        .filter_map(|(path, text)| {
            let line = text.lines().position(|line| !line.is_ascii())?;
            Some(format!("{}:{}", path.display(), line + 1))
        })
        .collect();
    complain("sources are ASCII", offenders);
}

#[test]
fn libraries_stay_in_their_places() {
    let rules: [(&str, &[&str]); 5] = [
        ("quinn::", &["protocol/src/transport", "benches", "tests"]),
        ("rustls::", &["protocol/src/transport", "benches", "tests"]),
        ("io_uring::", &["server/src/device", "benches"]),
        (
            "fuser::",
            &["client/src/fuse", "client/src/mount", "benches"],
        ),
        (
            "redb::",
            &[
                "server/src/tree",
                "server/src/control",
                "benches",
                "tests/src/consensus_sim",
            ],
        ),
    ];
    let mut offenders = Vec::new();
    for (path, text) in all_sources() {
        let relative = path.strip_prefix(source_tree()).expect("below the root");
        if relative.ends_with("tidy.rs") {
            continue;
        }
        for (library, places) in rules {
            let used = text
                .lines()
                .any(|line| !line.trim_start().starts_with("//") && line.contains(library));
            if used && !places.iter().any(|place| relative.starts_with(place)) {
                offenders.push(format!("{} uses {library}", relative.display()));
            }
        }
    }
    complain(
        "a library is used only in the module that wraps it",
        offenders,
    );
}

/// Checks the modules of a crate: `layers` names all of them, lowest first; one may import those before it, and itself.
fn imports_downward(part: &str, layers: &[&str]) {
    let root = source_tree().join(part).join("src");
    let text = std::fs::read_to_string(root.join("lib.rs")).expect("lib.rs");
    let mut offenders: Vec<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .filter(|module| !layers.contains(module))
        .map(|module| format!("{part}: module {module} has no place among the layers"))
        .collect();
    for (at, layer) in layers.iter().enumerate() {
        let mut files = Vec::new();
        let dir = root.join(layer);
        if dir.is_dir() {
            sources(&dir, &mut files);
        }
        let single = root.join(format!("{layer}.rs"));
        if single.exists() {
            files.push(single);
        }
        assert!(!files.is_empty(), "{part} has no module {layer}");
        files.retain(|file| {
            !file
                .components()
                .any(|part| part.as_os_str() == "tests" || part.as_os_str() == "tests.rs")
        });
        for file in files {
            let text = std::fs::read_to_string(&file).expect("source is text");
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for above in &layers[at + 1..] {
                let named = [format!("crate::{above}::"), format!("crate::{above};")];
                if named.iter().any(|path| code.contains(path)) {
                    offenders.push(format!("{} imports {above}", file.display()));
                }
            }
            if code.contains("crate::{") {
                offenders.push(format!(
                    "{} imports by crate::{{..}}, which hides the order: one `use` per module",
                    file.display()
                ));
            }
        }
    }
    complain(&format!("{part} imports downward only"), offenders);
}

#[test]
fn server_layers_import_downward_only() {
    imports_downward(
        "server",
        &[
            "guard",
            "device",
            "superblock",
            "wal",
            "alloc",
            "tree",
            "store",
            "namespace",
            "setlog",
            "brick",
            "offline",
            "control",
            "node",
        ],
    );
}

#[test]
fn client_layers_import_downward_only() {
    imports_downward(
        "client",
        &[
            "credentials",
            "remote",
            "volume",
            "vfs",
            "fuse",
            "mount",
            "demo",
            "cli",
        ],
    );
}

#[test]
fn the_page_of_options_is_the_table() {
    let path = source_tree().join("docs/options.md");
    let page = mortar_protocol::options::page();
    if std::env::var_os("UPDATE_PAGES").is_some() {
        std::fs::write(&path, &page).expect("docs/options.md");
    }
    let written = std::fs::read_to_string(&path).expect("docs/options.md");
    assert!(
        written == page,
        "docs/options.md is not what the table says: `UPDATE_PAGES=1 cargo tidy` writes it anew"
    );
}

#[test]
fn nothing_names_this_machine() {
    let mut offenders = Vec::new();
    let needles = [["/wo", "rk/"].concat(), ["crates", ".io"].concat()];
    for (path, text) in all_sources() {
        for needle in &needles {
            if text.contains(needle.as_str()) {
                offenders.push(format!("{} contains {needle}", path.display()));
            }
        }
    }
    complain("no path of a machine, no registry's name", offenders);
}
