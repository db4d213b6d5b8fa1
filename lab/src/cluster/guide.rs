//! The commands of docs/INSTALL.md, so that what people read is what is run.

use std::fs;

use crate::Failure;
use crate::build;

/// What the section says to do, in order.
#[derive(Debug, PartialEq, Eq)]
pub struct Guide {
    /// Statements for the database's superuser.
    pub sql: Vec<String>,
    /// Blocks of shell commands.
    pub commands: Vec<String>,
}

/// Its title: what has to be done once.
pub const FIRST_RECORD: &str = "From nothing to the first record";
/// Its title: how an installation is looked at.
pub const CHECK: &str = "Verify the installation";
/// Its title: what Prometheus has to be told.
pub const MONITORING: &str = "Monitoring";

impl Guide {
    /// A section of the document.
    pub fn read(title: &str) -> Result<Guide, Failure> {
        let text = fs::read_to_string(build::repository().join("docs/INSTALL.md"))?;
        let heading = format!("\n## {title}\n");
        let (_, section) =
            text.split_once(&heading).ok_or_else(|| format!("INSTALL.md has no section '{title}'"))?;
        let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
        let statements = blocks(section, "sql").flat_map(|block| block.split(';').map(str::trim));
        Ok(Guide {
            sql: statements.filter(|statement| !statement.is_empty()).map(str::to_owned).collect(),
            commands: blocks(section, "sh").map(str::to_owned).collect(),
        })
    }

    /// How many commands a reader types.
    pub fn count(&self) -> usize {
        let lines = self.commands.iter().flat_map(|block| block.lines());
        // An indented line continues the one before.
        self.sql.len() + lines.filter(|line| !line.starts_with(' ')).count()
    }
}

fn blocks<'a>(markdown: &'a str, language: &str) -> impl Iterator<Item = &'a str> {
    let opening = format!("{language}\n");
    // What follows a closing fence begins with a line's end, and so with no language.
    markdown.split("\n```").filter_map(move |part| part.strip_prefix(opening.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sections_have_statements_and_commands() {
        assert_eq!(Guide::read(MONITORING).unwrap().count(), 2);
        let guide = Guide::read(FIRST_RECORD).unwrap();
        assert_eq!(guide.sql.len(), 2);
        assert!(guide.commands.first().unwrap().starts_with("helm install outbox "));
        assert!(guide.commands.last().unwrap().contains("curl "));
        assert_eq!(guide.count(), 10);
    }
}
