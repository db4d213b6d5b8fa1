//! The table of routes. What is not here does not exist: the router, the header Allow, the labels of metrics, and the
//! OpenAPI document are made from it.
//!
//! A new route is an entry here and a handler.

use basket::application::CommandType;
use futures::future::BoxFuture;
use serde_json::json;
use warp::http::{Method, StatusCode};
use warp::reply::Response;

use super::app::App;
use super::context::RequestContext;
use super::contract;
use super::dto::{Basket, BasketPage, Command, CommandPage, NewBasket, NewItem, NewQuantity, Payment};
use super::examples;
use super::idempotency::Key;
use super::operation::{Answer, Class, Content, Operation, QueryParameter, ResponseHeader, Schema, Tag};
use super::path::{PathParameters, matches};
use super::problem::{Problem, kinds};
use super::request::Request;

/// One method of one resource.
pub struct Route {
    /// The method. GET stands for HEAD, too.
    pub method: Method,
    /// The path, with the names of its parameters in braces.
    pub template: &'static str,
    /// What is executed.
    pub handler: Handler,
    /// What it takes and answers.
    pub operation: Operation,
}

/// What is executed.
pub enum Handler {
    /// For anyone: what says how to use the service can be read before one has a token.
    Public(fn(&App, &Request, &PathParameters<'_>) -> Result<Response, Problem>),
    /// For callers with a token.
    Authenticated(for<'a> fn(&'a RequestContext<'a>) -> BoxFuture<'a, Result<Response, Problem>>),
}

const BASKETS: &str = "/v1/baskets";
const BASKET: &str = "/v1/baskets/{id}";
const ITEMS: &str = "/v1/baskets/{id}/items";
const ITEM: &str = "/v1/baskets/{id}/items/{sku}";

const ETAG: ResponseHeader = ResponseHeader { name: "ETag", description: "The basket's version." };
const LOCATION: ResponseHeader = ResponseHeader {
    name: "Location",
    description: "The basket, as a reference that is relative to the address of the request.",
};
const LINK: ResponseHeader =
    ResponseHeader { name: "Link", description: "The first and the next page (RFC 8288)." };

/// The answer to a command about a basket.
const CHANGED: Answer = Answer {
    status: StatusCode::OK,
    description: "The basket after the command.",
    content: Content::Json(Schema::of::<Basket>(examples::basket)),
    headers: &[ETAG],
};

/// All routes.
pub static ROUTES: [Route; 13] = [
    Route {
        method: Method::POST,
        template: BASKETS,
        handler: Handler::Authenticated(|context| Box::pin(context.create_basket())),
        operation: Operation {
            id: "create_basket",
            tag: Tag::Baskets,
            summary: "Create a basket",
            description: "The basket is open and empty, and belongs to the caller.",
            class: Class::Create,
            query: &[],
            request: Some(Schema::of::<NewBasket>(examples::new_basket)),
            answer: Answer {
                status: StatusCode::CREATED,
                description: "The new basket.",
                headers: &[ETAG, LOCATION],
                ..CHANGED
            },
            problems: &[],
        },
    },
    Route {
        method: Method::GET,
        template: BASKETS,
        handler: Handler::Authenticated(|context| Box::pin(context.list_baskets())),
        operation: Operation {
            id: "list_baskets",
            tag: Tag::Baskets,
            summary: "List your baskets",
            description: "Newest first, in pages. An entry is a summary: read a basket to see its lines.",
            class: Class::List,
            query: &[
                QueryParameter {
                    name: "buyer_id",
                    description: "Only baskets of this buyer.",
                    schema: || json!({ "$ref": "#/components/schemas/BuyerId" }),
                },
                QueryParameter {
                    name: "status",
                    description: "Only baskets in this status.",
                    schema: || json!({ "$ref": "#/components/schemas/Status" }),
                },
            ],
            request: None,
            answer: Answer {
                status: StatusCode::OK,
                description: "A page of baskets.",
                content: Content::Json(Schema::of::<BasketPage>(examples::basket_page)),
                headers: &[LINK],
            },
            problems: &[],
        },
    },
    Route {
        method: Method::GET,
        template: BASKET,
        handler: Handler::Authenticated(|context| {
            Box::pin(async move { context.get_basket(context.path.basket()?).await })
        }),
        operation: Operation {
            id: "get_basket",
            tag: Tag::Baskets,
            summary: "Read a basket",
            description: "With If-None-Match, 304 if the basket has not changed since.",
            class: Class::Read,
            query: &[],
            request: None,
            answer: Answer { description: "The basket.", ..CHANGED },
            problems: &[&kinds::BASKET_NOT_FOUND],
        },
    },
    Route {
        method: Method::DELETE,
        template: BASKET,
        handler: Handler::Authenticated(|context| {
            Box::pin(async move { context.abandon(context.path.basket()?).await })
        }),
        operation: Operation {
            id: "abandon_basket",
            tag: Tag::Baskets,
            summary: "Abandon a basket",
            description: "The basket is kept with the status abandoned, and never changes again.",
            class: Class::Change(Key::Optional),
            query: &[],
            request: None,
            answer: CHANGED,
            problems: &[&kinds::BASKET_NOT_FOUND],
        },
    },
    Route {
        method: Method::POST,
        template: ITEMS,
        handler: Handler::Authenticated(|context| {
            Box::pin(async move { context.add_item(context.path.basket()?).await })
        }),
        operation: Operation {
            id: "add_item",
            tag: Tag::Baskets,
            summary: "Add an item",
            description: "More pieces of an article that the basket has join its line. All prices of a basket have one currency.",
            class: Class::Change(Key::Required),
            query: &[],
            request: Some(Schema::of::<NewItem>(examples::new_item)),
            answer: CHANGED,
            problems: &[
                &kinds::BASKET_NOT_FOUND,
                &kinds::PRICE_MISMATCH,
                &kinds::CURRENCY_MISMATCH,
                &kinds::BASKET_LIMIT,
            ],
        },
    },
    Route {
        method: Method::DELETE,
        template: ITEMS,
        handler: Handler::Authenticated(|context| {
            Box::pin(async move { context.clear(context.path.basket()?).await })
        }),
        operation: Operation {
            id: "clear_basket",
            tag: Tag::Baskets,
            summary: "Remove all items",
            description: "An empty basket stays as it is.",
            class: Class::Change(Key::Optional),
            query: &[],
            request: None,
            answer: CHANGED,
            problems: &[&kinds::BASKET_NOT_FOUND],
        },
    },
    Route {
        method: Method::PATCH,
        template: ITEM,
        handler: Handler::Authenticated(|context| {
            Box::pin(
                async move { context.change_quantity(context.path.basket()?, context.path.sku()?).await },
            )
        }),
        operation: Operation {
            id: "change_quantity",
            tag: Tag::Baskets,
            summary: "Change the number of pieces",
            description: "The line keeps its price.",
            class: Class::Change(Key::Optional),
            query: &[],
            request: Some(Schema::of::<NewQuantity>(examples::new_quantity)),
            answer: CHANGED,
            problems: &[&kinds::BASKET_NOT_FOUND, &kinds::ITEM_NOT_FOUND],
        },
    },
    Route {
        method: Method::DELETE,
        template: ITEM,
        handler: Handler::Authenticated(|context| {
            Box::pin(async move { context.remove_item(context.path.basket()?, context.path.sku()?).await })
        }),
        operation: Operation {
            id: "remove_item",
            tag: Tag::Baskets,
            summary: "Remove an item",
            description: "The whole line, however many pieces it has.",
            class: Class::Change(Key::Optional),
            query: &[],
            request: None,
            answer: CHANGED,
            problems: &[&kinds::BASKET_NOT_FOUND, &kinds::ITEM_NOT_FOUND],
        },
    },
    Route {
        method: Method::POST,
        template: "/v1/baskets/{id}/checkout",
        handler: Handler::Authenticated(|context| {
            Box::pin(async move { context.check_out(context.path.basket()?).await })
        }),
        operation: Operation {
            id: "check_out",
            tag: Tag::Baskets,
            summary: "Check out a basket",
            description: "The basket is ordered as it is, and never changes again. Its event carries a full snapshot.",
            class: Class::Change(Key::Required),
            query: &[],
            request: Some(Schema::of::<Payment>(examples::payment)),
            answer: CHANGED,
            problems: &[&kinds::BASKET_NOT_FOUND, &kinds::BASKET_EMPTY],
        },
    },
    Route {
        method: Method::GET,
        template: "/v1/commands",
        handler: Handler::Authenticated(|context| Box::pin(context.list_commands())),
        operation: Operation {
            id: "list_commands",
            tag: Tag::Commands,
            summary: "List commands",
            description: "Newest first, in pages. Callers see their own commands; a token with the auditor role sees those of all principals.",
            class: Class::List,
            query: &[
                QueryParameter {
                    name: "principal",
                    description: "Only commands of this principal. Other principals than the caller need the auditor role.",
                    schema: || {
                        json!({ "type": "string", "minLength": 1, "maxLength": 200,
                                       "pattern": r"^[^\u0000-\u001f\u007f-\u009f]*$" })
                    },
                },
                QueryParameter {
                    name: "type",
                    description: "Only commands of this type.",
                    schema: || json!({ "type": "string", "enum": CommandType::names() }),
                },
                QueryParameter {
                    name: "outcome",
                    description: "Only commands that ended so.",
                    schema: || json!({ "type": "string", "enum": ["accepted", "refused"] }),
                },
                QueryParameter {
                    name: "from",
                    description: "Only commands received at this time or later.",
                    schema: || json!({ "type": "string", "format": "date-time" }),
                },
                QueryParameter {
                    name: "until",
                    description: "Only commands received before this time.",
                    schema: || json!({ "type": "string", "format": "date-time" }),
                },
            ],
            request: None,
            answer: Answer {
                status: StatusCode::OK,
                description: "A page of commands.",
                content: Content::Json(Schema::of::<CommandPage>(examples::command_page)),
                headers: &[LINK],
            },
            problems: &[&kinds::FORBIDDEN],
        },
    },
    Route {
        method: Method::GET,
        template: "/v1/commands/{id}",
        handler: Handler::Authenticated(|context| {
            Box::pin(async move { context.get_command(context.path.command()?).await })
        }),
        operation: Operation {
            id: "get_command",
            tag: Tag::Commands,
            summary: "Read a command",
            description: "The id is the Command-Id of the answer to it, and the causation-id of its events.",
            class: Class::Read,
            query: &[],
            request: None,
            answer: Answer {
                status: StatusCode::OK,
                description: "The command.",
                content: Content::Json(Schema::of::<Command>(examples::command)),
                headers: &[],
            },
            problems: &[&kinds::COMMAND_NOT_FOUND],
        },
    },
    Route {
        method: Method::GET,
        template: "/openapi.json",
        handler: Handler::Public(|app, request, _| contract::document(&app.document, &request.headers)),
        operation: Operation {
            id: "openapi",
            tag: Tag::Contract,
            summary: "Read this document",
            description: "OpenAPI 3.1, of the version that is running.",
            class: Class::Public,
            query: &[],
            request: None,
            answer: Answer {
                status: StatusCode::OK,
                description: "This document.",
                content: Content::JsonObject,
                headers: &[],
            },
            problems: &[],
        },
    },
    Route {
        method: Method::GET,
        template: "/problems/{type}",
        handler: Handler::Public(|_, request, path| {
            contract::problem_page(path.get("type").unwrap_or_default(), &request.headers)
        }),
        operation: Operation {
            id: "problem_type",
            tag: Tag::Contract,
            summary: "Read about a problem type",
            description: "The page that the type of a problem leads to.",
            class: Class::Public,
            query: &[],
            request: None,
            answer: Answer {
                status: StatusCode::OK,
                description: "A page for people.",
                content: Content::Html,
                headers: &[],
            },
            problems: &[&kinds::NOT_FOUND],
        },
    },
];

/// The routes of a resource, and the parameters of its path.
pub struct Resource<'a> {
    /// The path's template.
    pub template: &'static str,
    /// The path's parameters.
    pub path: PathParameters<'a>,
}

impl Resource<'_> {
    /// The resource at a path.
    pub fn at(path: &str) -> Option<Resource<'_>> {
        ROUTES.iter().find_map(|route| {
            Some(Resource { template: route.template, path: matches(route.template, path)? })
        })
    }

    /// The route of a method.
    pub fn route(&self, method: &Method) -> Result<&'static Route, Problem> {
        let method = if method == Method::HEAD { &Method::GET } else { method };
        let route = self.routes().find(|route| route.method == *method);
        route.ok_or_else(|| Problem::method_not_allowed(&self.methods()))
    }

    /// Whether it needs no token.
    pub fn is_public(&self) -> bool {
        self.routes().any(|route| matches!(route.handler, Handler::Public(_)))
    }

    /// Its methods, as the header Allow lists them.
    fn methods(&self) -> String {
        let mut methods: Vec<&str> = self.routes().map(|route| route.method.as_str()).collect();
        if methods.contains(&"GET") {
            methods.push("HEAD");
        }
        methods.sort_unstable();
        methods.join(", ")
    }

    fn routes(&self) -> impl Iterator<Item = &'static Route> {
        let template = self.template;
        ROUTES.iter().filter(move |route| route.template == template)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_lists_its_methods() {
        let methods = |path| Resource::at(path).unwrap().methods();
        assert_eq!(methods("/v1/baskets"), "GET, HEAD, POST");
        assert_eq!(methods("/v1/baskets/x"), "DELETE, GET, HEAD");
        assert_eq!(methods("/v1/baskets/x/items/y"), "DELETE, PATCH");
        assert!(Resource::at("/v1").is_none() && Resource::at("/v1/baskets/").is_some());
    }

    #[test]
    fn every_route_is_reached_by_its_own_template_and_has_a_unique_name() {
        for route in &ROUTES {
            let path = route.template.replace(['{', '}'], "");
            let resource = Resource::at(&path).unwrap();
            assert_eq!(resource.template, route.template);
            assert_eq!(resource.route(&route.method).unwrap().operation.id, route.operation.id);
            assert_eq!(ROUTES.iter().filter(|other| other.operation.id == route.operation.id).count(), 1);
        }
    }
}
