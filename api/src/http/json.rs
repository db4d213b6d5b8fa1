//! Request bodies as JSON objects, read strictly and to the end: every error of a body is reported at once, each with
//! the JSON pointer of its place.
//!
//! serde's derived readers stop at the first error, repeat the value in it, and take a list for an object.

use std::fmt::{self, Display};

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::error::Category;
use serde_json::{Map, Number, Value};

use super::problem::{FieldError, Problem};

/// Errors that are reported at most: an answer is no larger than it is useful.
const MAX_ERRORS: usize = 100;

/// A body that is a JSON object.
pub trait FromObject: Sized {
    /// Takes the members. `None` after an error, which the object keeps.
    fn from_object(object: &mut Object<'_>) -> Option<Self>;
}

/// The body as a `T`. What is not a JSON object, or could be understood differently by two readers, is malformed (400); an
/// object that is not a `T` is invalid (422).
pub fn read<T: FromObject>(body: &[u8]) -> Result<T, Problem> {
    let Value::Object(members) = parse(body)? else {
        return Err(Problem::malformed("the body must be a JSON object"));
    };
    let mut errors = Vec::new();
    let mut object = Object { members, pointer: String::new(), errors: &mut errors };
    let read = T::from_object(&mut object);
    object.end();
    read.filter(|_| errors.is_empty()).ok_or_else(|| Problem::invalid(errors))
}

fn parse(body: &[u8]) -> Result<Value, Problem> {
    serde_json::from_slice(body).map(|Strict(value)| value).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        Problem::malformed(match error.classify() {
            // The only rule that is not of JSON itself.
            Category::Data => {
                format!("an object of the body has a member twice (line {line}, column {column})")
            }
            _ => format!("the body is not JSON (line {line}, column {column})"),
        })
    })
}

/// A JSON object whose members are taken one by one.
pub struct Object<'a> {
    members: Map<String, Value>,
    pointer: String,
    errors: &'a mut Vec<FieldError>,
}

impl Object<'_> {
    /// A member that is text.
    pub fn text<T: TryFrom<String, Error: Display>>(&mut self, name: &str) -> Option<T> {
        self.member(name, "must be a string", |value| value.as_str().map(str::to_owned))
    }

    /// A member that counts something. What does not fit becomes the nearest number that does, which is not allowed either.
    pub fn count<T: TryFrom<u32, Error: Display>>(&mut self, name: &str) -> Option<T> {
        let nearest = |number: i64| u32::try_from(number.max(0)).unwrap_or(u32::MAX);
        self.member(name, "must be an integer", |value| integer(value).map(nearest))
    }

    /// A member that is an integer, of which the nearest one that fits is taken.
    pub fn integer(&mut self, name: &str) -> Option<i64> {
        self.member::<i64, i64>(name, "must be an integer", integer)
    }

    /// A member that is one of these names.
    pub fn one_of<T: Copy + Into<&'static str>>(&mut self, name: &str, allowed: &[T]) -> Option<T> {
        let names: Vec<&str> = allowed.iter().map(|&allowed| allowed.into()).collect();
        let expected = format!("must be one of {}", names.join(", "));
        let position = |value: &Value| names.iter().position(|name| value == name);
        let position: usize = self.member(name, &expected, position)?;
        allowed.get(position).copied()
    }

    /// What two members mean together; an error is of the member `name`.
    pub fn checked<T, E: Display>(&mut self, name: &str, result: Result<T, E>) -> Option<T> {
        let pointer = self.pointer(name);
        result.map_or_else(|error| self.error(pointer, error.to_string()), Some)
    }

    /// A member that is an object.
    pub fn object<T>(&mut self, name: &str, read: impl FnOnce(&mut Object<'_>) -> Option<T>) -> Option<T> {
        let pointer = self.pointer(name);
        match self.members.remove(name) {
            Some(Value::Object(members)) => {
                let mut object = Object { members, pointer, errors: &mut *self.errors };
                let read = read(&mut object);
                object.end();
                read
            }
            Some(_) => self.error(pointer, format!("{name} must be an object")),
            None => self.error(pointer, format!("{name} is missing")),
        }
    }

    fn member<V, T: TryFrom<V, Error: Display>>(
        &mut self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<V>,
    ) -> Option<T> {
        let pointer = self.pointer(name);
        let Some(value) = self.members.remove(name) else {
            return self.error(pointer, format!("{name} is missing"));
        };
        let Some(value) = read(&value) else { return self.error(pointer, format!("{name} {expected}")) };
        match T::try_from(value) {
            Ok(value) => Some(value),
            Err(error) => self.error(pointer, error.to_string()),
        }
    }

    /// What is left is unknown: a client that sends it expects something of it.
    fn end(mut self) {
        for name in std::mem::take(&mut self.members).keys() {
            let pointer = self.pointer(name);
            let _: Option<()> = self.error(pointer, "the member is unknown".to_owned());
        }
    }

    fn error<T>(&mut self, pointer: String, detail: String) -> Option<T> {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(FieldError { detail, pointer });
        }
        None
    }

    fn pointer(&self, name: &str) -> String {
        format!("{}/{}", self.pointer, name.replace('~', "~0").replace('/', "~1"))
    }
}

fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.is_u64().then_some(i64::MAX))
}

/// A JSON value none of whose objects has a member twice: of two, one reader takes the first and another one the last.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Strict, D::Error> {
        StrictValue.deserialize(deserializer).map(Strict)
    }
}

struct StrictValue;

impl<'de> DeserializeSeed<'de> for StrictValue {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StrictValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = sequence.next_element_seed(StrictValue)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value_seed(StrictValue)?;
            if members.insert(name, value).is_some() {
                return Err(A::Error::custom("a member is given twice"));
            }
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Point {
        name: String,
        x: i64,
        y: Option<u32>,
    }

    impl FromObject for Point {
        fn from_object(object: &mut Object<'_>) -> Option<Point> {
            let name = object.text("name");
            let x = object.integer("x");
            let y = object.object("more", |more| more.count::<u32>("y"));
            Some(Point { name: name?, x: x?, y: Some(y?) })
        }
    }

    fn errors(body: &str) -> Vec<(String, String)> {
        let problem = read::<Point>(body.as_bytes()).unwrap_err();
        let errors = problem.errors().iter().cloned();
        errors.map(|error| (error.pointer, error.detail)).collect()
    }

    #[test]
    fn every_error_is_reported_with_its_place() {
        let body = r#"{"name": 5, "more": {"y": 1.5, "a/b~c": {}}, "unknown": null}"#;
        let expected = [
            ("/name", "name must be a string"),
            ("/x", "x is missing"),
            ("/more/y", "y must be an integer"),
            ("/more/a~1b~0c", "the member is unknown"),
            ("/unknown", "the member is unknown"),
        ];
        assert_eq!(errors(body), expected.map(|(pointer, detail)| (pointer.to_owned(), detail.to_owned())));
    }

    #[test]
    fn an_object_is_no_list_and_no_value_is_repeated() {
        let body = r#"{"name": "a", "x": 1, "more": [7]}"#;
        assert_eq!(errors(body), [("/more".to_owned(), "more must be an object".to_owned())]);
        let secret = format!(r#"{{"name": "a", "x": "{}", "more": {{"y": 1}}}}"#, "secret".repeat(1000));
        assert_eq!(errors(&secret), [("/x".to_owned(), "x must be an integer".to_owned())]);
    }

    #[test]
    fn what_two_readers_could_understand_differently_is_malformed_at_every_depth() {
        let bodies = [
            r#"{"name": "a", "name": "a", "x": 1, "more": {"y": 1}}"#,
            r#"{"name": "a", "x": 1, "more": {"y": 1, "y": 2}}"#,
            r#"{"name": "a", "x": 1, "more": {"y": [{"z": 1, "z": 1}]}}"#,
            r#"{"name": "a", "x": 1, "more": {"y": 1}} {}"#,
            "[]",
            "null",
        ];
        for body in bodies {
            let problem = read::<Point>(body.as_bytes()).unwrap_err();
            assert_eq!(problem.status(), 400, "{body}");
        }
        let body = r#" {"name": "a", "x": -1, "more": {"y": 1}} "#;
        assert_eq!(read::<Point>(body.as_bytes()).unwrap(), Point { name: "a".into(), x: -1, y: Some(1) });
    }
}
