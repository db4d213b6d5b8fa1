//! Documents, charts, comments, messages and test names use the field's words. A reader searches for "recreated", "CA" and
//! "forever", and not for the words on this list.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should fail there and then"
)]

mod files;

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use lab::build::repository;
use regex::{Captures, Regex};

/// Words that are not used, and what to write instead. Case counts, except that of the first letter of a lower-case word.
const REPLACEMENTS: [(&str, &str); 40] = [
    ("anew", "again, recreated"),
    ("anybody", "any client, anyone"),
    ("are away", "are down, do not run"),
    ("authorities", "CAs"),
    ("authority", "CA"),
    ("by itself", "automatically, unexpectedly, separately"),
    ("by themselves", "automatically"),
    ("events a second", "events per second"),
    ("everybody", "everyone, every client"),
    ("fail-over", "failover"),
    ("for ever", "forever"),
    ("ghost", "phantom"),
    ("glance", "quick check"),
    ("go on", "continue"),
    ("goes on", "continues"),
    ("gone on", "continued"),
    ("is away", "is down, does not run"),
    ("let go", "release"),
    ("lets go", "releases"),
    ("login", "credentials, authentication"),
    ("logins", "credentials, SASL"),
    ("look after", "manage"),
    ("looks after", "manages"),
    ("keeps its log", "retains WAL"),
    ("once a second", "once per second"),
    ("nobody", "no client, no other process, or name the actor"),
    ("of its own", "its own, separate"),
    ("of their own", "their own, separate"),
    ("Postgres", "PostgreSQL"),
    ("put back", "restored, republished"),
    ("somebody", "another client, an attacker, you"),
    ("stand still", "stop"),
    ("stands still", "has stopped"),
    ("that is there", "existing"),
    ("topic of dead letters", "dead-letter topic"),
    ("trouble", "problem, error"),
    ("the slot's log", "the WAL that the slot needs"),
    ("twice a second", "twice per second"),
    ("under way", "in flight, in progress"),
    ("whoever", "name the actor"),
];

/// Where a word of the list is a name that others have given.
const NAMES_OF_OTHERS: [(&str, &str); 5] = [
    // The part of a URI between scheme and path (RFC 3986).
    ("crates/outbox/src/attribute.rs", "authority"),
    // A field of CloudNativePG's roles.
    ("docs/samples/cloudnative-pg.yaml", "login"),
    ("docs/tutorials/kubernetes.md", "login"),
    // A member of kubeconfig files.
    ("testbed/src/kubernetes/access.rs", "authority"),
    // A user of the system.
    ("testbed/src/guard.rs", "nobody"),
];

/// Kinds of files that have prose for people.
const EXTENSIONS: [&str; 15] =
    ["go", "java", "json", "md", "py", "rs", "sh", "sql", "svg", "toml", "tpl", "ts", "txt", "yaml", "yml"];

#[test]
fn no_text_uses_a_word_of_the_list() {
    let root = repository();
    let mut files = files::below(&root);
    files.retain(|file| is_prose(file));
    let words = pattern();
    let mut found = Vec::new();
    for file in &files {
        let name = file.strip_prefix(&root).unwrap().to_str().unwrap();
        // The list itself.
        if name == "lab/tests/words.rs" {
            continue;
        }
        let text = fs::read_to_string(file).unwrap();
        let text = if name.ends_with(".rs") { prose_of_rust(&text) } else { text };
        for (line, word) in banned(&words, &text) {
            if !NAMES_OF_OTHERS.contains(&(name, word)) {
                found.push(format!("{name}:{line}: '{word}': write {}", replacement(word)));
            }
        }
    }
    assert!(files.len() > 600, "the files were not found: {}", files.len());
    assert!(found.is_empty(), "{} words that the field does not use:\n{}", found.len(), found.join("\n"));
}

#[test]
fn a_word_is_found_in_prose_and_nowhere_else() {
    let words = pattern();
    let found = |text: &str| banned(&words, text);
    assert_eq!(found("The relay goes\non.\n"), [(1, "goes on")], "across lines");
    assert_eq!(found("Somebody else"), [(1, "somebody")], "at the beginning of a sentence");
    assert!(found("runs as `nobody`, CREATE ROLE r LOGIN").is_empty(), "code and other spellings");
    let found = |source: &str| banned(&words, &prose_of_rust(source));
    assert_eq!(found("let login = 1;\n// It goes\n// on.\n"), [(2, "goes on")], "a comment");
    assert_eq!(found(r#"let it = "a\" \"b for ever";"#), [(1, "for ever")], "a message");
    assert_eq!(found("fn a_topic_is_made_anew() {}"), [(1, "anew")], "the name of a test");
    assert!(found("Authority::nobody(login.goes(on), '\"')").is_empty(), "code");
}

/// Any word of the list, at most once per place. Between its parts are blanks, or a line break with the sign of a comment.
fn pattern() -> Regex {
    let words = REPLACEMENTS.iter().map(|(word, _)| {
        let first = word.chars().next().unwrap();
        let either =
            if first.is_lowercase() { format!("[{}{first}]", first.to_uppercase()) } else { first.into() };
        format!("{either}{}", word[first.len_utf8()..].replace(' ', r"[\s#/!>]+"))
    });
    Regex::new(&format!(r"`[^`\n]*`|\b(?:{})\b", words.collect::<Vec<_>>().join("|"))).unwrap()
}

/// The words of the list in a text, with their lines. What stands in backquotes is code.
fn banned(words: &Regex, text: &str) -> Vec<(usize, &'static str)> {
    let found = words.find_iter(text).filter(|found| !found.as_str().starts_with('`'));
    found
        .map(|found| {
            let parts: Vec<&str> =
                found.as_str().split(|c: char| c.is_whitespace() || "#/!>".contains(c)).collect();
            let written = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
            let known = REPLACEMENTS.iter().find(|(word, _)| word.eq_ignore_ascii_case(&written));
            (
                text[..found.start()].matches('\n').count() + 1,
                known.expect("the pattern is made of the list").0,
            )
        })
        .collect()
}

fn replacement(word: &str) -> &'static str {
    REPLACEMENTS.iter().find(|(known, _)| *known == word).unwrap().1
}

/// A piece of Rust. Compiled once: hundreds of files are read.
static TOKEN: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = concat!(
        r###"(?s)(?<prose>//[^\n]*|/\*.*?\*/|r##".*?"##|r#".*?"#|r"[^"]*"|"(?:\\.|[^"\\])*")"###,
        r###"|'(?:\\.|[^'\\])'|(?<name>[A-Za-z]\w*)|[^\n"'/A-Za-z]+|[^\n]"###
    );
    Regex::new(pattern).unwrap()
});

/// Comments, string literals and names of at least four words, in their lines; the rest of the code is blank.
fn prose_of_rust(source: &str) -> String {
    let blank = |found: &Captures<'_>| {
        if let Some(prose) = found.name("prose") {
            return format!("{} ", prose.as_str());
        }
        let name = found.name("name").map_or("", |name| name.as_str());
        if name.matches('_').count() > 2 { name.replace('_', " ") } else { " ; ".to_owned() }
    };
    TOKEN.replace_all(source, blank).into_owned()
}

fn is_prose(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name == "Dockerfile")
        || file.extension().is_some_and(|extension| EXTENSIONS.contains(&extension.to_str().unwrap()))
}
