//! Path templates and their parameters.

use basket::application::CommandId;
use basket::domain::{BasketId, Sku};
use uuid::Uuid;

use super::problem::{Problem, kinds};
use super::request::percent_decoded;

/// The parameters of a path, as they were sent. A value that cannot be one is answered as one that does not exist.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PathParameters<'a>(Vec<(&'static str, &'a str)>);

/// The parameters of `path`, if it is one of `template`: segments in braces stand for any one.
pub fn matches<'a>(template: &'static str, path: &'a str) -> Option<PathParameters<'a>> {
    let (mut expected, mut given) = (template.split('/'), path.split('/'));
    let mut parameters = Vec::new();
    loop {
        match (expected.next(), given.next()) {
            (None, None) => return Some(PathParameters(parameters)),
            (Some(expected), Some(given)) => match parameter(expected) {
                Some(name) => parameters.push((name, given)),
                None if expected == given => {}
                None => return None,
            },
            _ => return None,
        }
    }
}

/// The names of a template's parameters.
pub fn parameters(template: &'static str) -> impl Iterator<Item = &'static str> {
    template.split('/').filter_map(parameter)
}

fn parameter(segment: &'static str) -> Option<&'static str> {
    segment.strip_prefix('{')?.strip_suffix('}')
}

impl PathParameters<'_> {
    /// `{id}` of a basket
    pub fn basket(&self) -> Result<BasketId, Problem> {
        self.uuid("id").map(BasketId).ok_or_else(Problem::basket_not_found)
    }

    /// `{id}` of a command
    pub fn command(&self) -> Result<CommandId, Problem> {
        self.uuid("id").map(CommandId).ok_or_else(Problem::command_not_found)
    }

    /// `{sku}`
    pub fn sku(&self) -> Result<Sku, Problem> {
        let sku = self.get("sku").and_then(percent_decoded).and_then(|text| Sku::try_from(text).ok());
        sku.ok_or_else(|| Problem::new(&kinds::ITEM_NOT_FOUND, "the basket has no item with this sku"))
    }

    /// As it was sent.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    /// One spelling of an id: hyphenated, as this service writes it.
    fn uuid(&self, name: &str) -> Option<Uuid> {
        let text = self.get(name)?;
        Uuid::try_parse(text).ok().filter(|id| id.to_string().eq_ignore_ascii_case(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_matches_segment_by_segment() {
        let template = "/v1/baskets/{id}/items/{sku}";
        let id = "0199c1dd-4e0a-7d52-9d0c-5b8f3a1e7c40";
        let path = format!("/v1/baskets/{id}/items/tea%20250");
        let parameters = matches(template, &path).unwrap();
        assert_eq!(parameters.basket().unwrap().to_string(), id);
        assert_eq!(parameters.sku().unwrap().as_str(), "tea 250");
        for other in [
            "/v1/baskets/1/items",
            "/v1/baskets/1/items/a/b",
            "/v1/commands/1/items/a",
            "v1/baskets/1/items/a",
        ] {
            assert_eq!(matches(template, other), None, "{other}");
        }
    }

    #[test]
    fn an_id_has_one_spelling() {
        let id = "0199c1dd-4e0a-7d52-9d0c-5b8f3a1e7c40";
        let basket = |id: &str| {
            let path = format!("/v1/baskets/{id}");
            matches("/v1/baskets/{id}", &path).unwrap().basket().is_ok()
        };
        assert!(basket(id) && basket(&id.to_uppercase()));
        for other in ["", "1", &id.replace('-', ""), &format!("{{{id}}}"), &format!("urn:uuid:{id}")] {
            assert!(!basket(other), "{other}");
        }
    }
}
