//! Baskets over HTTP: each handler reads a request, sends one command or query, and writes the answer.

use basket::application::queries::{BasketFilter, PageRequest};
use basket::application::{BasketChange, BasketCommand, BasketStatus, BasketView, CommandResult, Outcome};
use basket::domain::{AbandonReason, BasketId, BuyerId, Line, Sku, Version};
use uuid::Uuid;
use warp::http::header::{ETAG, LOCATION};
use warp::http::{HeaderName, HeaderValue, StatusCode};
use warp::reply::{Reply, Response};

use super::conditions::{has_already, if_match};
use super::context::RequestContext;
use super::dto::{Basket, BasketPage, BasketSummary, NewBasket, NewItem, NewQuantity, Payment};
use super::idempotency::envelope;
use super::pages::Listing;
use super::problem::Problem;
use super::{body, reply};

impl RequestContext<'_> {
    /// `POST /v1/baskets`
    pub async fn create_basket(&self) -> Result<Response, Problem> {
        let NewBasket { buyer_id: buyer } = body::json(self.request)?;
        let command = BasketCommand::Create { basket_id: BasketId(Uuid::now_v7()), buyer };
        self.dispatch(command).await
    }

    /// `POST /v1/baskets/{id}/items`
    pub async fn add_item(&self, basket_id: BasketId) -> Result<Response, Problem> {
        let expected_version = self.expected_version()?;
        let NewItem { sku, name, quantity, unit_price } = body::json(self.request)?;
        let change = BasketChange::AddItem { line: Line { sku, name, quantity, unit_price } };
        self.change(basket_id, expected_version, change).await
    }

    /// `PATCH /v1/baskets/{id}/items/{sku}`
    pub async fn change_quantity(&self, basket_id: BasketId, sku: Sku) -> Result<Response, Problem> {
        let expected_version = self.expected_version()?;
        let NewQuantity { quantity } = body::json(self.request)?;
        let change = BasketChange::ChangeQuantity { sku, quantity };
        self.change(basket_id, expected_version, change).await
    }

    /// `DELETE /v1/baskets/{id}/items/{sku}`
    pub async fn remove_item(&self, basket_id: BasketId, sku: Sku) -> Result<Response, Problem> {
        let expected_version = self.expected_version()?;
        self.change(basket_id, expected_version, BasketChange::RemoveItem { sku }).await
    }

    /// `DELETE /v1/baskets/{id}/items`
    pub async fn clear(&self, basket_id: BasketId) -> Result<Response, Problem> {
        let expected_version = self.expected_version()?;
        self.change(basket_id, expected_version, BasketChange::Clear).await
    }

    /// `POST /v1/baskets/{id}/checkout`
    pub async fn check_out(&self, basket_id: BasketId) -> Result<Response, Problem> {
        let expected_version = self.expected_version()?;
        let Payment { payment_method } = body::json(self.request)?;
        let change = BasketChange::CheckOut { payment_method };
        self.change(basket_id, expected_version, change).await
    }

    /// `DELETE /v1/baskets/{id}`
    pub async fn abandon(&self, basket_id: BasketId) -> Result<Response, Problem> {
        let expected_version = self.expected_version()?;
        let change = BasketChange::Abandon { reason: AbandonReason::Requested };
        self.change(basket_id, expected_version, change).await
    }

    /// `GET /v1/baskets/{id}`
    pub async fn get_basket(&self, id: BasketId) -> Result<Response, Problem> {
        let view = self.app.baskets.get(&self.caller.name, id).await?;
        let view = view.ok_or_else(Problem::basket_not_found)?;
        if has_already(&self.request.headers, view.version)? {
            let mut response = StatusCode::NOT_MODIFIED.into_response();
            set_etag(&mut response, view.version);
            return Ok(response);
        }
        Ok(basket_response(view, StatusCode::OK))
    }

    /// `GET /v1/baskets?buyer_id=&status=&limit=&page_token=`
    pub async fn list_baskets(&self) -> Result<Response, Problem> {
        let listing = Listing::of(self.request, &self.caller.name)?;
        let filter = filter(&listing.filters)?;
        let request =
            PageRequest { after: listing.portion.after.map(BasketId), limit: listing.portion.limit };
        let page = self.app.baskets.list(&self.caller.name, &filter, request).await?;
        let last = page.entries.last().filter(|_| page.more);
        let next = last.map(|basket| listing.token(basket.id.0));
        let baskets = page.entries.into_iter().map(BasketSummary::from).collect();
        let mut response = reply::json(&BasketPage { baskets, next_page_token: next.clone() });
        listing.link(&mut response, next.as_deref());
        Ok(response)
    }

    fn expected_version(&self) -> Result<Option<Version>, Problem> {
        if_match(&self.request.headers, self.app.rules.require_if_match)
    }

    async fn change(
        &self,
        basket_id: BasketId,
        expected_version: Option<Version>,
        change: BasketChange,
    ) -> Result<Response, Problem> {
        let command = BasketCommand::Change { basket_id, expected_version, change };
        self.dispatch(command).await
    }

    async fn dispatch(&self, command: BasketCommand) -> Result<Response, Problem> {
        let key = self.operation.class.key();
        let envelope = envelope(self.request, self.caller.principal.clone(), command, key)?;
        let CommandResult { command, outcome, replayed } = self.app.bus.dispatch(&envelope).await?;
        let mut response = match outcome {
            Outcome::Accepted(view) => basket_response(view, self.operation.answer.status),
            Outcome::Refused(refusal) => Problem::from(&refusal).into_response(&command.to_string()),
        };
        let headers = response.headers_mut();
        if let Ok(id) = HeaderValue::from_str(&command.to_string()) {
            headers.insert(HeaderName::from_static("command-id"), id);
        }
        if replayed {
            headers.insert(HeaderName::from_static("idempotent-replayed"), HeaderValue::from_static("true"));
        }
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

fn status(value: &str) -> Result<BasketStatus, Problem> {
    value.parse().map_err(|_| Problem::malformed("status must be open, checked_out or abandoned"))
}

fn basket_response(view: BasketView, status: StatusCode) -> Response {
    let (id, version) = (view.id, view.version);
    let mut response = warp::reply::with_status(reply::json(&Basket::from(view)), status).into_response();
    set_etag(&mut response, version);
    if status == StatusCode::CREATED
        // Relative to the address of the request, which may have a prefix that only an ingress knows.
        && let Ok(location) = HeaderValue::from_str(&format!("baskets/{id}"))
    {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

fn set_etag(response: &mut Response, Version(version): Version) {
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{version}\"")) {
        response.headers_mut().insert(ETAG, tag);
    }
}
