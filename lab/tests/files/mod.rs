//! The files of the repository, for the tests that read them.

use std::fs;
use std::path::{Path, PathBuf};

/// All files below a folder, without what is built, fetched or hidden.
pub fn below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if !path.is_dir() {
            found.push(path);
        } else if name != "target" && name != "node_modules" && !name.starts_with('.') {
            found.extend(below(&path));
        }
    }
    found
}
