//! The handlers: each takes a request apart, sends one command or query, and writes the answer down.

use basket::application::commands::{AddItem, CheckOut, CreateBasket};
use basket::application::queries::{BasketFilter, DEFAULT_PAGE, MAX_PAGE};
use basket::application::{Answer, BasketView, Command, Outcome};
use basket::domain::{BasketId, BuyerId, Line, Money, Name, PaymentMethod, Quantity, Sku, Version};
use serde::{Deserialize, Serialize};
use serde_json::json;
use url::form_urlencoded;
use uuid::Uuid;
use warp::http::header::{ETAG, LOCATION};
use warp::http::{HeaderName, HeaderValue, StatusCode};
use warp::reply::{Reply, Response};

use super::body;
use super::idempotency::{identify, if_match};
use super::problem::Problem;
use super::request::Request;
use super::routes::App;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewBasket {
    buyer_id: BuyerId,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewItem {
    sku: Sku,
    name: Name,
    quantity: Quantity,
    unit_price: Money,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Payment {
    payment_method: PaymentMethod,
}

/// `POST /v1/baskets`
pub async fn create(app: &App, request: &Request, principal: &str) -> Result<Response, Problem> {
    let NewBasket { buyer_id } = body::json(&request.headers, &request.body)?;
    let command = CreateBasket { id: BasketId(Uuid::now_v7()), buyer_id };
    dispatch(app, request, principal, command, StatusCode::CREATED).await
}

/// `POST /v1/baskets/{id}/items`
pub async fn add_item(
    app: &App,
    request: &Request,
    principal: &str,
    id: BasketId,
) -> Result<Response, Problem> {
    let expected_version = if_match(&request.headers)?;
    let NewItem { sku, name, quantity, unit_price } = body::json(&request.headers, &request.body)?;
    let command = AddItem { basket_id: id, line: Line { sku, name, quantity, unit_price }, expected_version };
    dispatch(app, request, principal, command, StatusCode::OK).await
}

/// `POST /v1/baskets/{id}/checkout`
pub async fn check_out(
    app: &App,
    request: &Request,
    principal: &str,
    id: BasketId,
) -> Result<Response, Problem> {
    let expected_version = if_match(&request.headers)?;
    let Payment { payment_method } = body::json(&request.headers, &request.body)?;
    let command = CheckOut { basket_id: id, payment_method, expected_version };
    dispatch(app, request, principal, command, StatusCode::OK).await
}

/// `GET /v1/baskets/{id}`
pub async fn get(app: &App, id: BasketId) -> Result<Response, Problem> {
    let view = app.queries.get(id).await?.ok_or_else(Problem::basket_not_found)?;
    Ok(shown(&view, StatusCode::OK))
}

/// `GET /v1/baskets?buyer_id=&limit=&page_token=`
pub async fn list(app: &App, request: &Request) -> Result<Response, Problem> {
    let filter = filter(&request.query)?;
    let page = app.queries.list(&filter).await?;
    let next = page.next.map(|id| id.0.simple().to_string());
    Ok(json_response(&json!({ "baskets": page.baskets, "next_page_token": next }), StatusCode::OK))
}

fn filter(query: &str) -> Result<BasketFilter, Problem> {
    let mut filter = BasketFilter { buyer_id: None, after: None, limit: DEFAULT_PAGE };
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "buyer_id" => {
                let buyer = BuyerId::try_from(value.into_owned());
                let buyer = buyer.map_err(|error| Problem::malformed(error.to_string()))?;
                filter.buyer_id = Some(buyer.into());
            }
            "limit" => {
                let limit = value.parse().ok().filter(|limit| (1..=MAX_PAGE).contains(limit));
                let wrong = || Problem::malformed(format!("limit must be 1 to {MAX_PAGE}"));
                filter.limit = limit.ok_or_else(wrong)?;
            }
            "page_token" => {
                let token = Uuid::try_parse(&value).ok().filter(|id| id.simple().to_string() == *value);
                let wrong = || Problem::malformed("page_token must be one that this service gave out");
                filter.after = Some(BasketId(token.ok_or_else(wrong)?));
            }
            _ => return Err(Problem::malformed("the parameters are buyer_id, limit and page_token")),
        }
    }
    Ok(filter)
}

async fn dispatch<C: Command>(
    app: &App,
    request: &Request,
    principal: &str,
    command: C,
    accepted: StatusCode,
) -> Result<Response, Problem> {
    let wish = identify(request, principal, command)?;
    let answer = app.bus.dispatch(&wish).await?;
    let mut response = match &answer.outcome {
        Outcome::Accepted(view) => shown(view, accepted),
        Outcome::Refused(refusal) => Problem::from(refusal).into_response(&answer.command.to_string()),
    };
    mark(&mut response, &answer);
    Ok(response)
}

/// What only answers to commands have.
fn mark(response: &mut Response, answer: &Answer) {
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&answer.command.to_string()) {
        headers.insert(HeaderName::from_static("command-id"), id);
    }
    if answer.replayed {
        headers.insert(HeaderName::from_static("idempotent-replayed"), HeaderValue::from_static("true"));
    }
}

fn shown(view: &BasketView, status: StatusCode) -> Response {
    let mut response = json_response(view, status);
    let Version(version) = view.version;
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{version}\"")) {
        response.headers_mut().insert(ETAG, tag);
    }
    if status == StatusCode::CREATED
        && let Ok(location) = HeaderValue::from_str(&format!("/v1/baskets/{}", view.id))
    {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

fn json_response(body: &impl Serialize, status: StatusCode) -> Response {
    warp::reply::with_status(warp::reply::json(body), status).into_response()
}
