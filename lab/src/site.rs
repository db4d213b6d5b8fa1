//! `cargo xtask site`: the documents as a site, by mdBook.
//!
//! mdBook reads one folder, and the documents link to files of the whole repository: what `docs/SUMMARY.md` lists and what these
//! documents link to is copied to a folder that mdBook reads. A link of the site that leads nowhere is an error.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use testbed::rust;

use crate::Failure;
use crate::build;

/// MPL-2.0; a tool, and no part of the programs.
const MDBOOK: &str = "0.5.4";

/// Without its server and its watcher.
const MDBOOK_OPTIONS: [&str; 3] = ["--no-default-features", "--features", "search"];

/// Builds the site, and says where it is.
pub async fn run() -> Result<(), Failure> {
    // On a separate thread, so that Ctrl-C is heard meanwhile.
    let index = tokio::task::spawn_blocking(build_site).await??;
    println!("{}", index.display());
    Ok(())
}

/// Builds the site into `target/site`.
pub fn build_site() -> Result<PathBuf, Failure> {
    let mdbook = rust::program("mdbook", MDBOOK, &MDBOOK_OPTIONS)?;
    let root = build::repository();
    let (source, site) = (root.join("target/site-source"), root.join("target/site"));
    for folder in [&source, &site] {
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
    }
    copy_source(&root, &source)?;
    let built = Command::new(mdbook).arg("build").arg(&source).output()?;
    if !built.status.success() {
        return Err(String::from_utf8_lossy(&built.stderr).into());
    }
    let broken = broken_links(&site)?;
    if broken.is_empty() { Ok(site.join("index.html")) } else { Err(broken.join("\n").into()) }
}

/// The documents that `docs/SUMMARY.md` lists, by their path in the repository.
pub fn listed(root: &Path) -> Result<Vec<PathBuf>, Failure> {
    let summary = fs::read_to_string(root.join("docs/SUMMARY.md"))?;
    Ok(links(&summary).map(|link| normal(&Path::new("docs").join(link))).collect())
}

fn copy_source(root: &Path, source: &Path) -> Result<(), Failure> {
    let documents = listed(root)?;
    let mut summary = fs::read_to_string(root.join("docs/SUMMARY.md"))?;
    summary = summary.replace("](../", "](\u{0}").replace("](", "](docs/").replace("](docs/\u{0}", "](");
    for document in &documents {
        let text = fs::read_to_string(root.join(document))?;
        let folder = document.parent().unwrap_or(Path::new(""));
        for link in links(&text) {
            let linked = normal(&folder.join(link));
            if root.join(&linked).is_file() && !documents.contains(&linked) {
                copy(&root.join(&linked), &source.join(&linked))?;
            }
        }
        write(&source.join(with_index(document)), &indexes(&text))?;
    }
    write(&source.join("SUMMARY.md"), &indexes(&summary))?;
    copy(&root.join("book.toml"), &source.join("book.toml"))
}

/// mdBook makes `index.html` of a README, and leaves the links to it as they are.
fn with_index(document: &Path) -> PathBuf {
    if document.ends_with("README.md") { document.with_file_name("index.md") } else { document.to_owned() }
}

fn indexes(markdown: &str) -> String {
    markdown.replace("README.md)", "index.md)").replace("README.md#", "index.md#")
}

fn write(file: &Path, text: &str) -> Result<(), Failure> {
    fs::create_dir_all(file.parent().unwrap_or(Path::new("")))?;
    Ok(fs::write(file, text)?)
}

fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    fs::create_dir_all(to.parent().unwrap_or(Path::new("")))?;
    fs::copy(from, to).map_err(|error| format!("{}: {error}", from.display()))?;
    Ok(())
}

/// The files that a document links to, without anchors.
fn links(markdown: &str) -> impl Iterator<Item = &str> {
    let targets = markdown.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let files = targets.filter(|target| !target.contains("://") && !target.starts_with('#'));
    files.filter_map(|target| target.split('#').next())
}

/// A path without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(normal.pop()),
            Component::CurDir => {}
            other => normal.push(other),
        }
    }
    normal
}

/// Links of the built pages to files or anchors that are not in the site.
fn broken_links(site: &Path) -> Result<Vec<String>, Failure> {
    let mut pages = BTreeMap::new();
    read_pages(site, &mut pages)?;
    let mut broken = Vec::new();
    for (page, text) in &pages {
        // Its links are relative to the root of the site, wherever it is shown.
        if page.ends_with("404.html") {
            continue;
        }
        for link in text.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            if link.contains(':') || link.starts_with("//") || link.starts_with('/') {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { normal(&page.with_file_name(file)) };
            let has_anchor = |text: &String| text.contains(&format!("id=\"{anchor}\""));
            let leads = target.is_file() && (anchor.is_empty() || pages.get(&target).is_none_or(has_anchor));
            if !leads {
                broken.push(format!("{}: {link}", page.strip_prefix(site)?.display()));
            }
        }
    }
    Ok(broken)
}

fn read_pages(folder: &Path, pages: &mut BTreeMap<PathBuf, String>) -> Result<(), Failure> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            read_pages(&path, pages)?;
        } else if path.extension().is_some_and(|extension| extension == "html") {
            let text = fs::read_to_string(&path)?;
            pages.insert(path, text);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_files_of_the_repository() {
        let text = "[a](A.md#b), [c](https://x.test/y), [d](#e), ![f](images/f.svg)";
        assert_eq!(links(text).collect::<Vec<_>>(), ["A.md", "images/f.svg"]);
        assert_eq!(normal(Path::new("docs/how-to/../../README.md")), Path::new("README.md"));
    }
}
