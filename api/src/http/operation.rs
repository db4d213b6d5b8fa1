//! What a route takes and answers, as far as clients are told.

use schemars::{JsonSchema, SchemaGenerator};
use serde_json::Value;
use warp::http::StatusCode;

use super::idempotency::Key;
use super::problem::kinds::{self, Kind};

/// What a route takes and answers.
pub struct Operation {
    /// Name in generated clients.
    pub id: &'static str,
    /// Group in documents.
    pub tag: Tag,
    /// One line.
    pub summary: &'static str,
    /// What to know before the first call.
    pub description: &'static str,
    /// What all operations of its kind have in common.
    pub class: Class,
    /// Parameters of the query, apart from those of pages.
    pub query: &'static [QueryParameter],
    /// The body of requests.
    pub request: Option<Schema>,
    /// The answer to a request that succeeds.
    pub answer: Answer,
    /// Its own problems, in addition to those of its class, its path and its body.
    pub problems: &'static [&'static Kind],
}

/// Group in documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// Commands and queries about baskets.
    Baskets,
    /// The command log.
    Commands,
    /// The contract itself.
    Contract,
}

impl Tag {
    /// All of them, with what they hold.
    pub const ALL: [(Tag, &'static str); 3] = [
        (Tag::Baskets, "Commands and queries about baskets."),
        (Tag::Commands, "The command log: who asked for what, when, and what came of it."),
        (Tag::Contract, "This document, and a page for each problem type. They need no token."),
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Tag::Baskets => "baskets",
            Tag::Commands => "commands",
            Tag::Contract => "contract",
        }
    }
}

/// What operations have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Without a token.
    Public,
    /// Reads one resource.
    Read,
    /// Reads a page of a list.
    List,
    /// A command that creates a basket.
    Create,
    /// A command about a basket.
    Change(Key),
}

impl Class {
    /// Whether it is executed under an idempotency key, and is logged.
    pub fn is_command(self) -> bool {
        matches!(self, Class::Create | Class::Change(_))
    }

    /// Whether its requests need an idempotency key.
    pub fn key(self) -> Key {
        if matches!(self, Class::Create | Class::Change(Key::Required)) {
            Key::Required
        } else {
            Key::Optional
        }
    }

    fn problems(self) -> Vec<&'static Kind> {
        let mut problems = vec![
            &kinds::MALFORMED,
            &kinds::METHOD_NOT_ALLOWED,
            &kinds::NOT_ACCEPTABLE,
            &kinds::URI_TOO_LONG,
            &kinds::HEADERS_TOO_LARGE,
            &kinds::UNAVAILABLE,
        ];
        if self != Class::Public {
            problems.extend([
                &kinds::UNAUTHENTICATED,
                &kinds::TOO_SLOW,
                &kinds::TOO_LARGE,
                &kinds::TOO_MANY,
                &kinds::BUG,
            ]);
        }
        if self.is_command() {
            problems.extend([&kinds::KEY_IN_PROGRESS, &kinds::KEY_REUSED]);
        }
        if matches!(self, Class::Change(_)) {
            problems.extend([&kinds::BASKET_CLOSED, &kinds::VERSION_MISMATCH, &kinds::PRECONDITION_REQUIRED]);
        }
        if self.is_command() && self.key() == Key::Required {
            problems.push(&kinds::KEY_MISSING);
        }
        problems
    }
}

impl Operation {
    /// HTTP statuses of its problems, in order.
    pub fn problem_statuses(&self) -> Vec<u16> {
        let of_body: &[&Kind] =
            if self.request.is_some() { &[&kinds::NOT_JSON, &kinds::INVALID] } else { &[] };
        let problems = self.class.problems().into_iter().chain(of_body.iter().chain(self.problems).copied());
        let mut statuses: Vec<u16> = problems.map(|kind| kind.status.as_u16()).collect();
        statuses.sort_unstable();
        statuses.dedup();
        statuses
    }
}

/// A type that is sent or received, with an example.
pub struct Schema {
    /// A reference to its schema, which the generator keeps.
    pub of: fn(&mut SchemaGenerator) -> schemars::Schema,
    /// An example of it. A test holds it against the schema.
    pub example: fn() -> Value,
}

impl Schema {
    /// Of a type.
    pub const fn of<T: JsonSchema>(example: fn() -> Value) -> Schema {
        Schema { of: SchemaGenerator::subschema_for::<T>, example }
    }
}

/// A parameter of the query.
pub struct QueryParameter {
    /// Name.
    pub name: &'static str,
    /// What it does.
    pub description: &'static str,
    /// Its schema.
    pub schema: fn() -> Value,
}

/// The answer to a request that succeeds.
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// What it is.
    pub description: &'static str,
    /// Its body.
    pub content: Content,
    /// Its headers, apart from those of the class.
    pub headers: &'static [ResponseHeader],
}

/// A body.
pub enum Content {
    /// `application/json`, of a type.
    Json(Schema),
    /// `application/json`, without a schema of ours.
    JsonObject,
    /// `text/html`
    Html,
}

/// A header of an answer.
pub struct ResponseHeader {
    /// Name.
    pub name: &'static str,
    /// What it says.
    pub description: &'static str,
}
