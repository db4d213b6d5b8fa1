//! `cargo xtask crds`: the custom resource as it is applied, and its fields as they are documented.

use std::fs;
use std::path::Path;

use crate::Failure;
use crate::build::{self, Profile};

/// (file, what the operator prints it with)
const FILES: [(&str, &str); 4] = [
    ("crds/outboxrelays.outbox.dev.yaml", "crd"),
    ("charts/outbox-operator/files/outboxrelays.outbox.dev.yaml", "crd"),
    ("docs/OPERATOR-FIELDS.md", "fields"),
    ("docs/OPERATOR-REASONS.md", "reasons"),
];

/// Writes the files again from the program.
pub fn run() -> Result<(), Failure> {
    let program = build::operator(Profile::Dev)?.join("outbox-operator");
    for (file, what) in FILES {
        let path = build::repository().join(file);
        fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        fs::write(&path, build::printed(&program, what)?)?;
        println!("{}", path.display());
    }
    Ok(())
}
