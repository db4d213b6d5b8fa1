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

impl Guide {
    /// From nothing to the first record.
    pub fn read() -> Result<Guide, Failure> {
        let text = fs::read_to_string(build::repository().join("docs/INSTALL.md"))?;
        let (_, section) = text
            .split_once("\n## From nothing to the first record\n")
            .ok_or("INSTALL.md has no such section")?;
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
        // A line that is indented goes on with the one before.
        self.sql.len() + lines.filter(|line| !line.starts_with(' ')).count()
    }
}

fn blocks<'a>(markdown: &'a str, language: &str) -> impl Iterator<Item = &'a str> {
    let fence = format!("```{language}\n");
    markdown
        .split("\n```")
        .filter_map(move |part| format!("```{part}").starts_with(&fence).then_some(part))
        .map(|part| part.split_once('\n').map_or("", |(_, block)| block))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_section_has_statements_and_commands() {
        let guide = Guide::read().unwrap();
        assert_eq!(guide.sql.len(), 2);
        assert!(guide.commands.first().unwrap().starts_with("helm install outbox "));
        assert!(guide.commands.last().unwrap().contains("curl "));
        assert_eq!(guide.count(), 9);
    }
}
