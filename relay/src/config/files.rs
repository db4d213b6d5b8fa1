//! Files that the configuration names: certificates, keys, passwords. Errors name the field.

use std::path::{Path, PathBuf};
use std::{fs, io};

use super::ConfigError;
use super::access::TlsMode;

/// Reads a file that the configuration names. A program that has the contents in memory, as the operator has those of Secrets,
/// passes its own function and needs no disk.
pub type ReadFile<'a> = &'a dyn Fn(&Path) -> io::Result<Vec<u8>>;

/// Reads it from the disk.
pub(super) fn from_disk(file: &Path) -> io::Result<Vec<u8>> {
    fs::read(file)
}

pub(super) fn bytes(read: ReadFile<'_>, what: &'static str, file: &Path) -> Result<Vec<u8>, ConfigError> {
    read(file).map_err(|source| unreadable(what, file, source))
}

pub(super) fn text(read: ReadFile<'_>, what: &'static str, file: &Path) -> Result<String, ConfigError> {
    let not_text = |_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8");
    String::from_utf8(bytes(read, what, file)?).map_err(|error| unreadable(what, file, not_text(error)))
}

/// Without the end of the line, which editors add and secrets do not have.
pub(super) fn line(read: ReadFile<'_>, what: &'static str, file: &Path) -> Result<String, ConfigError> {
    Ok(text(read, what, file)?.trim_end_matches(['\r', '\n']).to_owned())
}

/// The client libraries say of a PEM that they cannot use no more than that; a wrong file should be named.
pub(super) fn pem(
    read: ReadFile<'_>,
    what: &'static str,
    file: &Path,
    holds: &str,
) -> Result<String, ConfigError> {
    let text = text(read, what, file)?;
    if text.contains("-----BEGIN ") && text.contains(&format!("{holds}-----")) {
        return Ok(text);
    }
    let kind = holds.to_lowercase();
    Err(ConfigError::field(what, format!("{} holds no {kind} in PEM form", file.display())))
}

fn unreadable(what: &'static str, file: &Path, source: io::Error) -> ConfigError {
    ConfigError::Unreadable { what, path: file.display().to_string(), source }
}

/// The names of the TLS settings of one side.
pub(super) struct TlsFields {
    pub(super) mode: &'static str,
    pub(super) ca: &'static str,
    pub(super) cert: &'static str,
    pub(super) key: &'static str,
}

/// The TLS settings that both sides have.
pub(super) struct TlsFiles<'a> {
    pub(super) fields: &'static TlsFields,
    pub(super) mode: TlsMode,
    pub(super) ca: &'a Option<PathBuf>,
    pub(super) cert: &'a Option<PathBuf>,
    pub(super) key: &'a Option<PathBuf>,
}

impl TlsFiles<'_> {
    /// Refuses what would be ignored.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let TlsFields { mode, ca, cert, .. } = self.fields;
        let verifies = matches!(self.mode, TlsMode::VerifyCa | TlsMode::VerifyFull);
        if self.ca.is_some() && !verifies {
            let problem = format!("is not used unless {mode} is verify-ca or verify-full");
            return Err(ConfigError::field(ca, problem));
        }
        if self.mode == TlsMode::Disable && (self.cert.is_some() || self.key.is_some()) {
            return Err(ConfigError::field(cert, format!("is not used when {mode} is disable")));
        }
        Ok(())
    }

    /// The files of the relay's own certificate and its key: both or none.
    pub(super) fn identity(&self) -> Result<Option<(&Path, &Path)>, ConfigError> {
        match (self.cert, self.key) {
            (Some(cert), Some(key)) => Ok(Some((cert, key))),
            (None, None) => Ok(None),
            (Some(_), None) => Err(ConfigError::field(self.fields.key, "is missing beside certFile")),
            (None, Some(_)) => Err(ConfigError::field(self.fields.cert, "is missing beside keyFile")),
        }
    }
}
