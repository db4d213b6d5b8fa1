//! Nothing stays behind. Every process and folder of the testbed is registered here, and a small guard outlives us:
//! a shell whose standard input is a pipe we hold. However this process ends (return, panic, Ctrl-C, kill -9), the
//! pipe closes, and the guard ends what is registered and removes the folder.
//!
//! The guard and all servers have separate process groups, so Ctrl-C in a terminal reaches only us. A process is
//! named by its number and its start time, so that a number used again is never hit.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::Error;

/// `nobody` and `nogroup`: PostgreSQL refuses to run as root, and needs a user that has a name.
const UNPRIVILEGED: u32 = 65_534;

/// Reads until the pipe closes, then ends every registered process with its children, and removes cgroups and the folder.
/// A stopped process is killed as well: SIGKILL needs no cooperation.
const GUARD: &str = r#"
trap '' INT TERM HUP
root=$1
cat >/dev/null
started() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }
children() { for stat in /proc/[0-9]*/stat; do sed 's/^\([0-9]*\) .*) [A-Za-z] \([0-9]*\) .*/\1 \2/' "$stat" 2>/dev/null; done |
             while read -r pid parent; do [ "$parent" = "$1" ] && echo "$pid"; done; }
while read -r pid start; do
  [ -n "$start" ] && [ "$(started "$pid")" = "$start" ] || continue
  offspring=$(children "$pid")
  kill -KILL "$pid" $offspring 2>/dev/null
done < "$root/pids"
while read -r cgroup; do
  for attempt in 1 2 3 4 5; do
    left=$(find /sys/fs/cgroup -maxdepth 2 -type d -name "$cgroup" 2>/dev/null)
    [ -z "$left" ] && break
    [ "$attempt" = 1 ] || sleep 0.2
    find $left -depth -type d -exec rmdir {} \; 2>/dev/null
  done
done < "$root/cgroups"
for attempt in 1 2 3 4 5; do rm -rf "$root" 2>/dev/null && break; sleep 0.2; done
"#;

struct Root {
    path: PathBuf,
    lists: Mutex<()>,
    /// Held open for as long as we live.
    _pipe: ChildStdin,
}

static ROOT: OnceLock<Root> = OnceLock::new();
static FOLDERS: AtomicU64 = AtomicU64::new(0);

fn root() -> Result<&'static Root, Error> {
    if let Some(root) = ROOT.get() {
        return Ok(root);
    }
    let made = make_root()?;
    // Two threads may race: the loser's pipe closes here, and its guard removes its empty folder.
    Ok(ROOT.get_or_init(|| made))
}

fn make_root() -> Result<Root, Error> {
    let path = tempfile::Builder::new()
        .prefix("outbox-testbed-")
        .tempdir()
        .map_err(Error::system("make a temporary folder"))?
        .keep();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(Error::file("open up", &path))?;
    for list in ["pids", "cgroups"] {
        fs::write(path.join(list), "").map_err(Error::file("write in", &path))?;
    }
    let mut guard = Command::new("sh")
        .args(["-c", GUARD, "testbed-guard"])
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(Error::system("start the guard"))?;
    let pipe = guard
        .stdin
        .take()
        .ok_or_else(|| Error::system("hold the guard's pipe")(std::io::Error::other("no pipe")))?;
    Ok(Root { path, lists: Mutex::new(()), _pipe: pipe })
}

/// A new folder below the root, removed with it or when dropped.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Makes one; the servers' user owns it.
    pub fn new(purpose: &str) -> Result<Folder, Error> {
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let path = root()?.path.join(format!("{purpose}-{number}"));
        fs::create_dir(&path).map_err(Error::file("make", &path))?;
        give_away(&path)?;
        Ok(Folder(path))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the guard.
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Registers a process, so that neither it nor its children outlive us.
///
/// # Errors
/// The list cannot be written.
pub fn register(pid: u32) -> Result<(), Error> {
    append("pids", &format!("{pid} {}\n", start_time(pid).unwrap_or_default()))
}

/// Registers a cgroup, which is there when the processes in it are gone.
pub(crate) fn register_cgroup(name: &str) -> Result<(), Error> {
    append("cgroups", &format!("{name}\n"))
}

fn append(list: &str, line: &str) -> Result<(), Error> {
    let root = root()?;
    let _one_line_at_a_time = root.lists.lock().unwrap_or_else(PoisonError::into_inner);
    let path = root.path.join(list);
    let mut file = OpenOptions::new().append(true).open(&path).map_err(Error::file("append to", &path))?;
    file.write_all(line.as_bytes()).map_err(Error::file("append to", &path))
}

/// When a process was started, in the kernel's ticks; `None` when it is gone.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(19).map(str::to_owned)
}

/// Whether we are root, and servers get another user.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// Makes the servers' user the owner of `path`, where we are root.
pub(crate) fn give_away(path: &Path) -> Result<(), Error> {
    if is_root() {
        chown(path, Some(UNPRIVILEGED), Some(UNPRIVILEGED)).map_err(Error::file("give away", path))?;
    }
    Ok(())
}

/// Writes a file of the servers' user with a mode.
pub(crate) fn write_for_servers(path: &Path, content: &str, mode: u32) -> Result<(), Error> {
    fs::write(path, content).map_err(Error::file("write", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(Error::file("protect", path))?;
    give_away(path)
}

/// Makes `command` run as the servers' user, where we are root.
pub(crate) fn unprivileged(command: &mut Command) -> &mut Command {
    if is_root() {
        command.uid(UNPRIVILEGED).gid(UNPRIVILEGED);
    }
    command
}
