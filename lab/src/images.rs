//! `cargo xtask images`: the programs' images from the Dockerfile, without Docker. The programs are compiled here instead of in the
//! Dockerfile's first stage; the rest of it is followed to the letter.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use testbed::images::Image;

use crate::Failure;
use crate::build::{self, Profile, SHIPPED};
use crate::paint::faint;

/// The images' version, which is that of the charts.
pub const TAG: &str = env!("CARGO_PKG_VERSION");

/// What image names begin with where no registry is meant: none has it, so that nothing is ever pulled.
pub const LOCAL: &str = "outbox.local";

/// Options of `images`.
#[derive(Args, Debug)]
pub struct Options {
    /// What their names begin with, such as registry.example/outbox.
    #[arg(long, default_value = LOCAL)]
    prefix: String,
}

/// Builds the images and says where they are.
pub async fn run(options: &Options) -> Result<(), Failure> {
    let prefix = options.prefix.clone();
    let archives = tokio::task::spawn_blocking(move || make(Profile::Release, &prefix)).await??;
    println!();
    for archive in &archives {
        let size = fs::metadata(archive)?.len() / 1_000_000;
        let name = archive.file_stem().unwrap_or_default().display();
        println!("{}/{name}:{TAG}  {size} MB  {}", options.prefix, archive.display());
    }
    println!("{}", faint("docker load --input FILE, or ctr --namespace k8s.io images import FILE"));
    Ok(())
}

/// Builds the programs and their images; answers the archives, one a program.
pub fn make(profile: Profile, prefix: &str) -> Result<Vec<PathBuf>, Failure> {
    // Tests build at each change: their programs need not be linked again for the commit alone.
    let commit = (profile == Profile::Release).then(commit).flatten();
    let programs = build::shipped(profile, commit.as_deref())?;
    let folder = build::target().join("images");
    let roots = folder.join("roots");
    let arguments = [format!("COMMIT={}", commit.unwrap_or_default())];
    fs::create_dir_all(&folder)?;
    // One at a time: tests that run side by side all come here.
    let lock = File::create(folder.join("lock"))?;
    lock.lock()?;
    drop(fs::remove_dir_all(&roots));
    fs::create_dir_all(&roots)?;
    let archive = |program: &&str| {
        root(&programs.join(program), &roots.join(program))?;
        let name = format!("{prefix}/{program}:{TAG}");
        let dockerfile = build::repository().join("Dockerfile");
        let image = Image {
            name: &name,
            dockerfile: &dockerfile,
            target: program,
            build: &roots,
            arguments: &arguments,
        };
        Ok(image.archive(&folder)?)
    };
    SHIPPED.iter().map(archive).collect()
}

/// As the Dockerfile's first stage does.
fn root(program: &Path, root: &Path) -> Result<(), Failure> {
    let script = build::repository().join("images/root.sh");
    build::output(Command::new("sh").arg(script).arg(program).arg(root)).map(drop)
}

/// Of a clone; a release's archive of sources has none.
fn commit() -> Option<String> {
    let mut git = Command::new("git");
    let commit = build::output(git.args(["rev-parse", "HEAD"]).current_dir(build::repository())).ok()?;
    Some(String::from_utf8(commit).ok()?.trim().to_owned())
}
