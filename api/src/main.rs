//! The program `basket-api`: arguments, logging, signals.

use std::error::Error;
use std::process::exit;

use basket::application::integration_events::schemas;
use basket_api::config::{self, Arguments, Command, Serve};
use basket_api::doctor;
use basket_api::http::openapi;
use basket_api::postgres::{Limits, PATIENT, Servers, migrate, rebuild_read_model};
use basket_api::service::{StartError, serve};
use process::{EXIT_BUG, EXIT_CONFIG, EXIT_UNAVAILABLE, LogFormat, init_logging};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

fn main() {
    let arguments: Arguments = process::arguments();
    match arguments.command {
        Command::Openapi => print(&openapi::document()),
        Command::EventSchemas => print(&event_schemas()),
        Command::Serve(_) | Command::Migrate(_) | Command::RebuildReadModel | Command::Doctor(_) => {}
    }
    let format = match &arguments.command {
        Command::Serve(options) => options.log_format,
        _ => LogFormat::Text,
    };
    let log_level = init_logging("info,sqlx=warn,sqlx_core::pool=off", format);
    process::exit_on_panic();
    let servers = config::database().unwrap_or_else(|error| refuse(&error));
    let Ok(runtime) = tokio::runtime::Builder::new_multi_thread().enable_all().build() else {
        tracing::error!("cannot start the runtime");
        exit(EXIT_BUG)
    };
    exit(match arguments.command {
        Command::Serve(options) => runtime.block_on(run(*options, servers, log_level)),
        Command::Migrate(options) => runtime.block_on(bring_up_to_date(servers, options.grant_to)),
        Command::RebuildReadModel => runtime.block_on(rebuild(servers)),
        Command::Doctor(options) => {
            let findings = runtime.block_on(doctor::examine(&servers, options.url.as_ref()));
            process::report(&findings, options.json)
        }
        Command::Openapi | Command::EventSchemas => 0,
    })
}

fn print(document: &Value) -> ! {
    println!("{document:#}");
    exit(0)
}

fn event_schemas() -> Value {
    schemas().into_iter().map(|(event_type, schema)| (event_type.to_owned(), schema.to_value())).collect()
}

fn refuse(error: &dyn Error) -> ! {
    eprintln!("invalid configuration: {error}");
    exit(EXIT_CONFIG)
}

async fn run(options: Serve, servers: Servers, log_level: process::LogLevel) -> i32 {
    match serve(options, servers, log_level, stop_signal()).await {
        Ok(()) => 0,
        Err(StartError::Metrics(error)) => {
            tracing::error!(%error, "cannot register metrics");
            EXIT_BUG
        }
        Err(error) => refuse(&error),
    }
}

async fn bring_up_to_date(servers: Servers, grant_to: Option<String>) -> i32 {
    let migrated = async {
        let mut session = servers.connect(Limits::MIGRATION, PATIENT).await?;
        Ok::<_, Box<dyn Error>>(migrate(&mut session.sql, grant_to.as_deref()).await?)
    };
    match migrated.await {
        Ok(()) => {
            tracing::info!("the schema is up to date");
            0
        }
        Err(error) => {
            tracing::error!(error = %error, "the schema could not be brought up to date");
            EXIT_UNAVAILABLE
        }
    }
}

async fn rebuild(servers: Servers) -> i32 {
    let rebuilt = async {
        let mut session = servers.connect(Limits::HOUSEKEEPING, PATIENT).await?;
        Ok::<_, Box<dyn Error>>(rebuild_read_model(&mut session.sql).await?)
    };
    match rebuilt.await {
        Ok(baskets) => {
            tracing::info!(baskets, "the read model is rebuilt");
            0
        }
        Err(error) => {
            tracing::error!(
                error,
                "the read model could not be rebuilt; what is there stays in use; repeat it"
            );
            EXIT_UNAVAILABLE
        }
    }
}

async fn stop_signal() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: finishing the requests in flight");
}
