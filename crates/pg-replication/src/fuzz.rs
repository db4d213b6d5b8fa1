//! What the fuzz targets (`fuzz/`) and the test over their corpus feed: any bytes, as a server could send them. They
//! panic when a promise is broken: no panic, and no memory by a length that is only claimed.

use crate::framing::{Framing, MemoryLimit, READ_BUFFER_BYTES};
use crate::pgoutput::{Message, Relation, Tuple};
use crate::report::server_error;
use crate::stream::parse_frame;

/// One pgoutput message: whatever parses can be read to its end.
pub fn message(bytes: &[u8]) {
    match Message::parse(bytes) {
        Ok(Message::Relation(relation)) => walk_relation(&relation),
        Ok(Message::Insert(insert)) => walk(&insert.tuple, bytes),
        Ok(Message::Update(update)) => {
            walk(&update.new, bytes);
            if let Some(old) = update.old {
                walk(&old, bytes);
            }
        }
        Ok(Message::Delete(delete)) => walk(&delete.old, bytes),
        Ok(Message::Truncate(truncate)) => {
            assert_eq!(truncate.relations().count(), truncate.relations().len())
        }
        Ok(_) | Err(_) => {}
    }
}

fn walk(tuple: &Tuple<'_>, bytes: &[u8]) {
    let columns = tuple.columns().count();
    assert!(columns == tuple.len() && columns <= bytes.len(), "{columns} columns in {} bytes", bytes.len());
}

fn walk_relation(relation: &Relation<'_>) {
    assert_eq!(relation.columns().count(), relation.columns().len());
}

/// What a socket brings: the first byte says in which pieces, the others are cut into messages, and those read; once
/// with large ones collected, once with them taken apart.
pub fn framing(bytes: &[u8]) {
    read(bytes, Framing::new());
    let mut limited = Framing::new();
    limited.set_small(32);
    limited.limit(MemoryLimit { largest_value: 16, is_wanted: Box::new(|_, column| column.name != "b") });
    read(bytes, limited);
}

fn read(bytes: &[u8], mut framing: Framing) {
    let Some((&piece, mut left)) = bytes.split_first() else { return };
    loop {
        while let Ok(Some(frame)) = framing.take() {
            match frame.tag {
                b'd' => {
                    if let Ok(crate::Frame::XLogData { data, .. }) = parse_frame(frame.body) {
                        framing.announce(&data);
                        message(&data);
                    }
                }
                b'E' | b'N' => drop(server_error(&frame.body)),
                _ => {}
            }
        }
        if left.is_empty() {
            break;
        }
        let space = framing.space();
        let count = (usize::from(piece) + 1).min(left.len()).min(space.capacity() - space.len());
        let (now, later) = left.split_at_checked(count).unwrap_or((left, &[]));
        space.extend_from_slice(now);
        left = later;
    }
    assert!(framing.allocated() <= READ_BUFFER_BYTES.max(bytes.len() * 2), "memory for what never came");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// In each place a few seconds' worth, in a debug build on a busy machine.
    const MUTATIONS: usize = 60_000;

    /// The files of a corpus, in a fixed order.
    fn corpus(target: &str) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut files: Vec<_> =
            std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert!(files.len() >= 8, "the corpus is not there");
        files.iter().map(|file| std::fs::read(file).unwrap()).collect()
    }

    /// A generator of numbers that is the same everywhere: xorshift64.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, limit: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % limit.max(1) as u64) as usize
        }
    }

    /// Changes a few things: a byte, a length, the end, or a piece of another file.
    fn mutate(bytes: &mut Vec<u8>, others: &[Vec<u8>], numbers: &mut Numbers) {
        const LENGTHS: [u32; 8] = [0, 1, 3, 0x7FFF, 0xFFFF, 0x3FFF_FFFF, 0x7FFF_FFFF, u32::MAX];
        for _ in 0..=numbers.below(3) {
            let at = numbers.below(bytes.len());
            match numbers.below(5) {
                0 if at < bytes.len() => bytes[at] = numbers.below(256) as u8,
                1 if at + 4 <= bytes.len() => {
                    let length = LENGTHS[numbers.below(LENGTHS.len())].to_be_bytes();
                    bytes[at..at + 4].copy_from_slice(&length);
                }
                2 => bytes.truncate(at),
                3 if at < bytes.len() => drop(bytes.remove(at)),
                _ => {
                    let other = &others[numbers.below(others.len())];
                    bytes.extend_from_slice(&other[numbers.below(other.len())..]);
                }
            }
        }
    }

    fn run(target: &str, feed: impl Fn(&[u8])) {
        let corpus = corpus(target);
        corpus.iter().for_each(|file| feed(file));
        let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15);
        for _ in 0..MUTATIONS {
            let mut bytes = corpus[numbers.below(corpus.len())].clone();
            mutate(&mut bytes, &corpus, &mut numbers);
            feed(&bytes);
        }
    }

    #[test]
    fn the_decoder_survives_its_corpus_and_mutations_of_it() {
        assert!(corpus("message").iter().filter(|file| Message::parse(file).is_ok()).count() >= 10);
        run("message", message);
    }

    #[test]
    fn the_framing_survives_its_corpus_and_mutations_of_it() {
        run("framing", framing);
    }
}
