//! Container images, built from ordinary Dockerfiles without a registry and without a daemon.

pub(crate) mod servers;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::guard::Folder;
use crate::{Error, cache, packages};

/// What holds a pod's namespaces; on every node.
pub const PAUSE: &str = "outbox.local/pause:1";

/// Images of these Dockerfiles come from folders of this machine only.
const POLICY: &str = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;

/// One image to build.
pub struct Image<'a> {
    /// As pods name it, with its tag.
    pub name: &'a str,
    /// Where it is described.
    pub dockerfile: &'a Path,
    /// Which of the targets there it is.
    pub target: &'a str,
    /// What stands for the stage `build`: the folder it would have filled.
    pub build: &'a Path,
    /// Arguments of the build, as `NAME=value`.
    pub arguments: &'a [String],
}

impl Image<'_> {
    /// Builds it, as an archive that `docker load` and `ctr images import` take, into `folder`.
    ///
    /// # Errors
    /// The Dockerfile is wrong, or this machine cannot build images: not root, or no Debian.
    pub fn archive(&self, folder: &Path) -> Result<PathBuf, Error> {
        let storage = Folder::new("images")?;
        let policy = storage.path().join("policy.json");
        fs::write(&policy, POLICY).map_err(Error::file("write", &policy))?;
        let archive = folder.join(format!("{}.tar", self.target));
        let mut build = buildah(&storage, "build")?;
        build.args(["--pull-never", "--isolation", "chroot", "--timestamp", "0"]);
        build.args(["--target", self.target, "--tag", self.name, "--build-context"]);
        build.arg(format!("build={}", self.build.display())).arg("--file").arg(self.dockerfile);
        build.args(self.arguments.iter().flat_map(|argument| ["--build-arg", argument])).arg(storage.path());
        cache::run(&mut build, "unshare", "util-linux", "building an image")?;
        // Beside the previous one, which another process may be reading.
        let part = archive.with_extension("part");
        drop(fs::remove_file(&part));
        let mut push = buildah(&storage, "push")?;
        push.arg(self.name).arg(format!("docker-archive:{}:{}", part.display(), self.name));
        cache::run(&mut push, "unshare", "util-linux", "writing an image's archive")?;
        fs::rename(&part, &archive).map_err(Error::file("name", &archive))?;
        Ok(archive)
    }
}

/// One of the testbed's own; its tag is always 1.
fn own(target: &str, build: &Path, folder: &Path) -> Result<PathBuf, Error> {
    let name = format!("outbox.local/{target}:1");
    let dockerfile = self::folder().join("Dockerfile");
    Image { name: &name, dockerfile: &dockerfile, target, build, arguments: &[] }.archive(folder)
}

/// The image that each pod's sandbox is made of.
pub(crate) fn pause(folder: &Path) -> Result<PathBuf, Error> {
    own("pause", &packages::folder()?.join("bin"), folder)
}

/// What the testbed's own images are made of.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("images")
}

fn buildah(storage: &Folder, command: &str) -> Result<Command, Error> {
    let mut buildah = packages::command("buildah")?;
    let at = |name: &str| storage.path().join(name);
    buildah.args(["--storage-driver", "vfs", "--root"]).arg(at("storage")).arg("--runroot").arg(at("run"));
    buildah.arg(command).arg("--signature-policy").arg(at("policy.json"));
    Ok(buildah)
}
