//! The documents, and the commands that they show, for the tests of documents and of the programs that have to accept the commands.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, cache};

/// Checks that `parse` accepts the commands of `program` in all documents, and that these have at least `fewest`.
///
/// # Errors
/// A command is not accepted, fewer are found, or the documents cannot be read.
pub fn accepted<E: Display>(
    program: &str,
    fewest: usize,
    parse: impl Fn(&[String]) -> Result<(), E>,
) -> Result<(), String> {
    let commands = commands(program).map_err(|error| error.to_string())?;
    if commands.len() < fewest {
        return Err(format!("the commands were not found: {commands:?}"));
    }
    commands.iter().try_for_each(|(document, words)| {
        parse(words).map_err(|error| format!("{}: {error}", document.display()))
    })
}

/// The commands of `program` in blocks of shell code of all documents, each with the file it is in: its words, without what another
/// program is given (pipes, redirections).
///
/// # Errors
/// The documents cannot be read.
fn commands(program: &str) -> Result<Vec<(PathBuf, Vec<String>)>, Error> {
    let mut found = Vec::new();
    for document in below(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))? {
        let text = fs::read_to_string(&document).map_err(Error::file("read", &document))?;
        found.extend(in_blocks(&text, program).map(|words| (document.clone(), words)));
    }
    Ok(found)
}

fn in_blocks<'a>(markdown: &'a str, program: &'a str) -> impl Iterator<Item = Vec<String>> + 'a {
    let blocks = markdown.split("```").skip(1).step_by(2);
    let blocks = blocks
        .filter_map(|block| ["sh\n", "console\n"].iter().find_map(|language| block.strip_prefix(language)));
    let lines = blocks.flat_map(|block| {
        let joined = block.replace("\\\n", " ");
        joined.lines().map(str::to_owned).collect::<Vec<_>>()
    });
    lines.filter_map(move |line| words(&line, program))
}

/// The words of a line that runs the program, itself the first.
fn words(line: &str, program: &str) -> Option<Vec<String>> {
    let line = line.trim_start().trim_start_matches("$ ");
    let rest = line.strip_prefix(program)?;
    if !rest.is_empty() && !rest.starts_with(' ') {
        return None;
    }
    let ends = |word: &&str| !["|", ">", "<", "&&", "&", "#", ";", "2>&1"].contains(word);
    let arguments = arguments(rest);
    let words = arguments.iter().map(String::as_str).take_while(ends).map(str::to_owned);
    Some(std::iter::once(program.to_owned()).chain(words).collect())
}

/// As a shell divides them, without expansions.
fn arguments(line: &str) -> Vec<String> {
    let (mut arguments, mut quote) = (vec![String::new()], None);
    for character in line.chars() {
        match quote {
            Some(opened) if opened == character => quote = None,
            None if character == '\'' || character == '"' => quote = Some(character),
            None if character.is_whitespace() => arguments.push(String::new()),
            _ => {
                if let Some(argument) = arguments.last_mut() {
                    argument.push(character);
                }
            }
        }
    }
    arguments.retain(|argument| !argument.is_empty());
    arguments
}

/// The Markdown files below a folder that are not hidden, built or fetched.
///
/// # Errors
/// The folder cannot be read.
pub fn below(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for path in cache::files(folder)? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            if name != "target" && name != "node_modules" && !name.starts_with('.') {
                found.extend(below(&path)?);
            }
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_in_blocks_with_all_their_words() {
        let text = "Run `tool no`.\n\n```sh\ntool run --file a \\\n  --all | jq .\ntools other\n```\n\n\
                    ```yaml\ntool: no\n```\n\n```console\n$ tool list 'a b' # all\nok\n```\n";
        let found: Vec<_> = in_blocks(text, "tool").collect();
        assert_eq!(found, [vec!["tool", "run", "--file", "a", "--all"], vec!["tool", "list", "a b"]]);
    }
}
