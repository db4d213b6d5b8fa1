//! Baskets over HTTP: each handler takes a request apart, sends one command or query, and writes the answer down.

use basket::application::commands::{
    AbandonBasket, AddItem, ChangeQuantity, CheckOut, ClearBasket, CreateBasket, RemoveItem,
};
use basket::application::queries::{BasketFilter, PageRequest};
use basket::application::{BasketView, Command, CommandResult, Outcome};
use basket::domain::{
    AbandonReason, BasketId, BuyerId, Line, Name, PaymentMethod, Price, Quantity, Sku, Status, Version,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use warp::http::header::{ETAG, LOCATION};
use warp::http::{HeaderName, HeaderValue, StatusCode};
use warp::reply::{Reply, Response};

use super::auth::Caller;
use super::conditions::{has_already, if_match};
use super::idempotency::{Key, identify};
use super::pages::Listing;
use super::problem::Problem;
use super::request::Request;
use super::routes::App;
use super::{body, routes};

/// A wish for a new basket.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewBasket {
    /// For whom.
    buyer_id: BuyerId,
}

/// An article, as the shop offers it now. The line keeps this snapshot.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewItem {
    /// Article number.
    sku: Sku,
    /// Name.
    name: Name,
    /// How many.
    quantity: Quantity,
    /// Price of one piece.
    unit_price: Price,
}

/// Another number of pieces.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewQuantity {
    /// How many there shall be.
    quantity: Quantity,
}

/// How a basket is paid.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Payment {
    /// The method.
    payment_method: PaymentMethod,
}

/// A page of baskets, newest first.
#[derive(Serialize, JsonSchema)]
pub struct BasketPage {
    /// The baskets.
    baskets: Vec<BasketView>,
    /// Where the next page begins; null on the last one.
    next_page_token: Option<String>,
}

/// A request that was let in.
pub struct Call<'a> {
    /// What handlers need.
    pub app: &'a App,
    /// The request.
    pub request: &'a Request,
    /// Who sent it.
    pub caller: &'a Caller,
}

impl Call<'_> {
    /// `POST /v1/baskets`
    pub async fn create_basket(&self) -> Result<Response, Problem> {
        let NewBasket { buyer_id } = body::json(self.request)?;
        let command = CreateBasket { id: BasketId(Uuid::now_v7()), buyer_id };
        self.dispatch(command, Key::Required, StatusCode::CREATED).await
    }

    /// `POST /v1/baskets/{id}/items`
    pub async fn add_item(&self, basket_id: BasketId) -> Result<Response, Problem> {
        let expected_version = self.expected_version()?;
        let NewItem { sku, name, quantity, unit_price } = body::json(self.request)?;
        let line = Line { sku, name, quantity, unit_price };
        self.dispatch(AddItem { basket_id, line, expected_version }, Key::Required, StatusCode::OK).await
    }

    /// `PATCH /v1/baskets/{id}/items/{sku}`
    pub async fn change_quantity(&self, basket_id: BasketId, sku: Sku) -> Result<Response, Problem> {
        let expected_version = self.expected_version()?;
        let NewQuantity { quantity } = body::json(self.request)?;
        let command = ChangeQuantity { basket_id, sku, quantity, expected_version };
        self.dispatch(command, Key::Optional, StatusCode::OK).await
    }

    /// `DELETE /v1/baskets/{id}/items/{sku}`
    pub async fn remove_item(&self, basket_id: BasketId, sku: Sku) -> Result<Response, Problem> {
        let expected_version = self.expected_version()?;
        self.dispatch(RemoveItem { basket_id, sku, expected_version }, Key::Optional, StatusCode::OK).await
    }

    /// `DELETE /v1/baskets/{id}/items`
    pub async fn clear(&self, basket_id: BasketId) -> Result<Response, Problem> {
        let expected_version = self.expected_version()?;
        self.dispatch(ClearBasket { basket_id, expected_version }, Key::Optional, StatusCode::OK).await
    }

    /// `POST /v1/baskets/{id}/checkout`
    pub async fn check_out(&self, basket_id: BasketId) -> Result<Response, Problem> {
        let expected_version = self.expected_version()?;
        let Payment { payment_method } = body::json(self.request)?;
        let command = CheckOut { basket_id, payment_method, expected_version };
        self.dispatch(command, Key::Required, StatusCode::OK).await
    }

    /// `DELETE /v1/baskets/{id}`
    pub async fn abandon(&self, basket_id: BasketId) -> Result<Response, Problem> {
        let expected_version = self.expected_version()?;
        let command = AbandonBasket { basket_id, reason: AbandonReason::Requested, expected_version };
        self.dispatch(command, Key::Optional, StatusCode::OK).await
    }

    /// `GET /v1/baskets/{id}`
    pub async fn get_basket(&self, id: BasketId) -> Result<Response, Problem> {
        let view = self.app.baskets.get(&self.caller.name, id).await?;
        let view = view.ok_or_else(Problem::basket_not_found)?;
        if has_already(&self.request.headers, view.version)? {
            let mut response = StatusCode::NOT_MODIFIED.into_response();
            tag(&mut response, view.version);
            return Ok(response);
        }
        Ok(shown(&view, StatusCode::OK))
    }

    /// `GET /v1/baskets?buyer_id=&status=&limit=&page_token=`
    pub async fn list_baskets(&self) -> Result<Response, Problem> {
        let listing = Listing::of(self.request, &self.caller.name)?;
        let filter = filter(&listing.filters)?;
        let portion =
            PageRequest { after: listing.portion.after.map(BasketId), limit: listing.portion.limit };
        let page = self.app.baskets.list(&self.caller.name, &filter, portion).await?;
        let last = page.entries.last().filter(|_| page.more);
        let next = last.map(|basket| listing.token(basket.id.0));
        let mut response = routes::json(&BasketPage { baskets: page.entries, next_page_token: next.clone() });
        listing.link(&mut response, next.as_deref());
        Ok(response)
    }

    fn expected_version(&self) -> Result<Option<Version>, Problem> {
        if_match(&self.request.headers, self.app.rules.require_if_match)
    }

    async fn dispatch<C: Command>(
        &self,
        command: C,
        key: Key,
        accepted: StatusCode,
    ) -> Result<Response, Problem> {
        let wish = identify(self.request, self.caller.principal(), command, key)?;
        let answer = self.app.bus.dispatch(&wish).await?;
        let mut response = match &answer.outcome {
            Outcome::Accepted(view) => shown(view, accepted),
            Outcome::Refused(refusal) => Problem::from(refusal).into_response(&answer.command.to_string()),
        };
        mark(&mut response, &answer);
        Ok(response)
    }
}

fn filter(parameters: &[(String, String)]) -> Result<BasketFilter, Problem> {
    let mut filter = BasketFilter::default();
    for (name, value) in parameters {
        match name.as_str() {
            "buyer_id" => {
                let buyer = BuyerId::try_from(value.clone());
                filter.buyer_id = Some(buyer.map_err(|error| Problem::malformed(error.to_string()))?);
            }
            "status" => filter.status = Some(status(value)?),
            _ => {
                return Err(Problem::malformed("the parameters are buyer_id, status, limit and page_token"));
            }
        }
    }
    Ok(filter)
}

fn status(value: &str) -> Result<Status, Problem> {
    let status = serde_json::from_value(value.into());
    status.map_err(|_| Problem::malformed("status must be open, checked_out or abandoned"))
}

/// What only answers to commands have.
fn mark(response: &mut Response, answer: &CommandResult) {
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&answer.command.to_string()) {
        headers.insert(HeaderName::from_static("command-id"), id);
    }
    if answer.replayed {
        headers.insert(HeaderName::from_static("idempotent-replayed"), HeaderValue::from_static("true"));
    }
}

fn shown(view: &BasketView, status: StatusCode) -> Response {
    let mut response = warp::reply::with_status(routes::json(view), status).into_response();
    tag(&mut response, view.version);
    if status == StatusCode::CREATED
        && let Ok(location) = HeaderValue::from_str(&format!("/v1/baskets/{}", view.id))
    {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

fn tag(response: &mut Response, Version(version): Version) {
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{version}\"")) {
        response.headers_mut().insert(ETAG, tag);
    }
}
