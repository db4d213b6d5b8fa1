//! The charts' READMEs: what each is, and a table of its values, made from the comments in `values.yaml`.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use crate::Failure;
use crate::build;

/// (chart, what comes before the table)
const CHARTS: [(&str, &str); 2] = [
    (
        "outbox-operator",
        "The Kubernetes operator of the resource OutboxRelay: publication, slot, topics and relay of a transactional outbox.\n\
         What it does and how to run it: [OPERATOR.md](../../docs/OPERATOR.md); upgrading: [UPGRADE.md](../../docs/UPGRADE.md).\n\n\
         ```sh\n\
         helm install outbox charts/outbox-operator --namespace outbox-system --create-namespace \\\n  \
           --set global.imageRegistry=registry.example\n\
         ```\n",
    ),
    (
        "basket-api",
        "The basket service. Its settings: [CONFIGURATION.md](../../docs/CONFIGURATION.md#basket-api); the API: [API.md](../../docs/API.md).\n\n\
         ```sh\n\
         helm install shop charts/basket-api --set global.imageRegistry=registry.example,database.secret=shop-db \\\n  \
           --set auth.jwt.issuer=https://issuer.example,auth.jwt.audience=basket,auth.jwt.jwksUrl=https://issuer.example/keys\n\
         ```\n",
    ),
];

/// Writes the READMEs again.
pub fn run() -> Result<(), Failure> {
    for (chart, about) in CHARTS {
        let path = folder(chart).join("README.md");
        fs::write(&path, readme(chart, about)?)?;
        println!("{}", path.display());
    }
    Ok(())
}

fn folder(chart: &str) -> PathBuf {
    build::repository().join("charts").join(chart)
}

fn readme(chart: &str, about: &str) -> Result<String, Failure> {
    let values = fs::read_to_string(folder(chart).join("values.yaml"))?;
    let mut text = format!(
        "# {chart}\n\n{about}\nA value that cannot work is refused with its name (`values.schema.json`).\n\n\
         Written by `cargo xtask charts` from `values.yaml`.\n\n| value | default | meaning |\n|---|---|---|\n"
    );
    for Row { path, default, meaning } in rows(&values) {
        let (default, meaning) = (default.replace('|', "\\|"), meaning.replace('|', "\\|"));
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| `{path}` | {default} | {meaning} |");
    }
    Ok(text)
}

#[derive(Debug, PartialEq)]
struct Row {
    path: String,
    default: String,
    meaning: String,
}

/// A row for each value, and for each group that has a comment. Of YAML it knows what the charts use: maps in blocks of two spaces, each value
/// on the line of its key, with its comment above. That of a value begins with `--`, as helm-docs and Artifact Hub read it.
fn rows(values: &str) -> Vec<Row> {
    let (mut rows, mut path, mut comment) = (Vec::new(), Vec::<String>::new(), Vec::<String>::new());
    for line in values.lines() {
        let text = line.trim_start();
        if let Some(words) = text.strip_prefix('#') {
            let words = words.trim();
            comment.push(words.strip_prefix("-- ").unwrap_or(words).to_owned());
            continue;
        }
        let Some((key, value)) = text.split_once(':') else {
            comment.clear();
            continue;
        };
        path.truncate((line.len() - text.len()) / 2);
        path.push(key.to_owned());
        let meaning = std::mem::take(&mut comment).join(" ");
        let value = value.trim();
        if !value.is_empty() || !meaning.is_empty() {
            let default = if value.is_empty() { String::new() } else { format!("`{value}`") };
            rows.push(Row { path: path.join("."), default, meaning });
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_has_the_comment_above_it() {
        let values = "# Of all.\nimage:\n  repository: a\n  # -- One\n  # two.\n  tag: \"\"\n\nlist: []\n";
        let row = |path: &str, default: &str, meaning: &str| Row {
            path: path.into(),
            default: default.into(),
            meaning: meaning.into(),
        };
        let expected = [
            row("image", "", "Of all."),
            row("image.repository", "`a`", ""),
            row("image.tag", "`\"\"`", "One two."),
            row("list", "`[]`", ""),
        ];
        assert_eq!(rows(values), expected);
    }

    #[test]
    fn the_readmes_are_up_to_date() {
        for (chart, about) in CHARTS {
            let written = fs::read_to_string(folder(chart).join("README.md")).unwrap_or_default();
            assert!(
                written == readme(chart, about).unwrap(),
                "charts/{chart}/README.md: run 'cargo xtask charts'"
            );
        }
    }
}
