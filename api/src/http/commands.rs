//! The command log over HTTP: callers see their own commands, auditors those of all principals.

use basket::application::queries::{CommandFilter, PageRequest};
use basket::application::{CommandId, CommandType};
use chrono::{DateTime, Utc};
use warp::reply::Response;

use super::auth::Caller;
use super::context::RequestContext;
use super::dto::{Command, CommandPage};
use super::pages::Listing;
use super::problem::{Problem, kinds};
use super::reply;

/// Longest name of a principal.
const MAX_NAME: usize = 200;

impl RequestContext<'_> {
    /// `GET /v1/commands/{id}`
    pub async fn get_command(&self, id: CommandId) -> Result<Response, Problem> {
        let own = (!self.caller.auditor).then_some(self.caller.name.as_str());
        let command = self.app.log.get(own, id).await?.ok_or_else(Problem::command_not_found)?;
        Ok(reply::json(&Command::from(command)))
    }

    /// `GET /v1/commands?principal=&type=&outcome=&from=&until=&limit=&page_token=`
    pub async fn list_commands(&self) -> Result<Response, Problem> {
        let listing = Listing::of(self.request, &self.caller.name)?;
        let (whose, filter) = filter(&listing.filters, self.caller)?;
        let portion =
            PageRequest { after: listing.portion.after.map(CommandId), limit: listing.portion.limit };
        let page = self.app.log.list(whose.as_deref(), &filter, portion).await?;
        let last = page.entries.last().filter(|_| page.more);
        let next = last.map(|command| listing.token(command.id.0));
        let commands = page.entries.into_iter().map(Command::from).collect();
        let mut response = reply::json(&CommandPage { commands, next_page_token: next.clone() });
        listing.link(&mut response, next.as_deref());
        Ok(response)
    }
}

/// Whose commands, and which.
fn filter(
    parameters: &[(String, String)],
    caller: &Caller,
) -> Result<(Option<String>, CommandFilter), Problem> {
    let mut whose = (!caller.auditor).then(|| caller.name.clone());
    let mut filter = CommandFilter::default();
    for (name, value) in parameters {
        match name.as_str() {
            "principal" => whose = Some(principal(value, caller)?),
            "type" => filter.command_type = Some(value.parse().map_err(|_| unknown_type())?),
            "outcome" => {
                let wrong = |_| Problem::malformed("outcome must be accepted or refused");
                filter.outcome = Some(value.parse().map_err(wrong)?);
            }
            "from" => filter.from = Some(time(name, value)?),
            "until" => filter.until = Some(time(name, value)?),
            _ => {
                let known = "principal, type, outcome, from, until, limit and page_token";
                return Err(Problem::malformed(format!("the parameters are {known}")));
            }
        }
    }
    Ok((whose, filter))
}

fn unknown_type() -> Problem {
    Problem::malformed(format!("type must be one of {}", CommandType::names().join(", ")))
}

fn principal(value: &str, caller: &Caller) -> Result<String, Problem> {
    if !(1..=MAX_NAME).contains(&value.chars().count()) || value.chars().any(char::is_control) {
        let detail = format!("principal must have 1 to {MAX_NAME} characters and no control characters");
        return Err(Problem::malformed(detail));
    }
    if caller.auditor || value == caller.name {
        return Ok(value.to_owned());
    }
    let detail = "another principal's commands can be read with the auditor role only";
    Err(Problem::new(&kinds::FORBIDDEN, detail))
}

fn time(name: &str, value: &str) -> Result<DateTime<Utc>, Problem> {
    let wrong =
        |_| Problem::malformed(format!("{name} must be a time such as 2026-01-31T12:00:00Z (RFC 3339)"));
    DateTime::parse_from_rfc3339(value).map(|time| time.to_utc()).map_err(wrong)
}
