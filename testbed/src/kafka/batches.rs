//! The record batches that brokers have stored, read from their own files: a client's requests show in no other place, whatever client it is.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::ops::Sub;
use std::path::Path;

use super::Kafka;
use crate::Error;

/// Header of a batch up to its number of records.
const HEADER: usize = 61;
/// What comes before the length of a batch, and that length.
const BEFORE: u64 = 12;

/// How much some topics hold; each replica counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Batches {
    /// Batches.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of the batches, compressed if the client compressed them.
    pub bytes: u64,
}

impl Batches {
    /// Records of a batch on average; `None` without a batch.
    pub fn records_each(&self) -> Option<f64> {
        (self.batches > 0).then(|| self.records as f64 / self.batches as f64)
    }

    /// Bytes of a batch on average; `None` without a batch.
    pub fn bytes_each(&self) -> Option<f64> {
        (self.batches > 0).then(|| self.bytes as f64 / self.batches as f64)
    }
}

impl Sub for Batches {
    type Output = Batches;

    fn sub(self, before: Batches) -> Batches {
        Batches {
            batches: self.batches - before.batches,
            records: self.records - before.records,
            bytes: self.bytes - before.bytes,
        }
    }
}

impl Kafka {
    /// What the partitions of `topics` hold now.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn batches(&self, topics: &[String]) -> Result<Batches, Error> {
        let mut found = Batches::default();
        for broker in &self.brokers {
            let data = broker.folder.path().join("data");
            for partition in entries(&data)? {
                let name = partition.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if name.rsplit_once('-').is_some_and(|(topic, _)| topics.iter().any(|one| one == topic)) {
                    for segment in entries(&partition)?.iter().filter(|file| is_segment(file)) {
                        let file = File::open(segment).map_err(Error::file("open", segment))?;
                        add(&mut found, BufReader::new(file)).map_err(Error::file("read", segment))?;
                    }
                }
            }
        }
        Ok(found)
    }
}

/// Adds the batches of a segment. Ends where the broker is still writing one.
fn add(found: &mut Batches, mut segment: impl Read) -> io::Result<()> {
    let mut header = [0; HEADER];
    while filled(&mut segment, &mut header)? {
        let length = u64::from(number(&header, 8));
        let rest = (BEFORE + length).saturating_sub(HEADER as u64);
        if io::copy(&mut segment.by_ref().take(rest), &mut io::sink())? < rest {
            break;
        }
        found.batches += 1;
        found.records += u64::from(number(&header, 57));
        found.bytes += BEFORE + length;
    }
    Ok(())
}

/// Whether all of `header` could be read.
fn filled(segment: &mut impl Read, header: &mut [u8; HEADER]) -> io::Result<bool> {
    match segment.read_exact(header) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// The number of four bytes at `from`.
fn number(header: &[u8; HEADER], from: usize) -> u32 {
    header.get(from..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

fn is_segment(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "log")
}

fn entries(folder: &Path) -> Result<Vec<std::path::PathBuf>, Error> {
    let entries = fs::read_dir(folder).map_err(Error::file("list", folder))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch with so many records and so many bytes after its header.
    fn batch(records: u32, bytes: u32) -> Vec<u8> {
        let mut batch = vec![0; HEADER];
        batch[8..12].copy_from_slice(&(49 + bytes).to_be_bytes());
        batch[57..61].copy_from_slice(&records.to_be_bytes());
        batch.extend(std::iter::repeat_n(7, bytes as usize));
        batch
    }

    #[test]
    fn batches_of_a_segment_are_counted_with_their_records_and_bytes() {
        let mut found = Batches::default();
        add(&mut found, [batch(3, 100), batch(5, 40)].concat().as_slice()).unwrap();
        assert_eq!(found, Batches { batches: 2, records: 8, bytes: 2 * 61 + 140 });
    }

    #[test]
    fn a_batch_that_is_being_written_is_not_counted() {
        for missing in [1, 100, 130] {
            let mut segment = [batch(3, 100), batch(5, 100)].concat();
            segment.truncate(segment.len() - missing);
            let mut found = Batches::default();
            add(&mut found, segment.as_slice()).unwrap();
            assert_eq!(found, Batches { batches: 1, records: 3, bytes: 161 });
        }
    }
}
