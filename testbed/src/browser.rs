//! A headless Chromium for the pages that programs serve: what is in them after their scripts ran, and pictures of them.
//!
//! It is told what to do by the Chrome DevTools Protocol over two pipes: messages of JSON, each ended by a zero byte. A command
//! has an id, which its answer repeats; events have none.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::guard::{self, Folder};
use crate::{Error, blocking, packages, wait};

/// The browser without a window: of the distribution, because its makers publish no package that an ordinary client fetches.
const PACKAGES: [&str; 2] = ["chromium-common", "chromium-headless-shell"];
const MEGABYTES: u32 = 100;
/// A machine that is busy with tests may take long to start it.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);
/// Of a page, in CSS pixels.
const WIDTH: u32 = 1000;

/// The protocol's pipes are the descriptors 3 (to the browser) and 4 (from it).
const ON_PIPES: &str = r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null"#;

/// A running browser with one page.
pub struct Browser {
    /// Ends with the value.
    _child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    sent: u64,
    /// The page's.
    session: Option<String>,
    /// Its profile and its log.
    folder: Folder,
}

/// Colours of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Dark text on white.
    Light,
    /// Light text on black.
    Dark,
}

impl Browser {
    /// Starts one; `None` where its packages cannot be had, because this is no Debian for example. Says so: a test is skipped then.
    ///
    /// # Errors
    /// The browser does not start, or does not answer.
    pub async fn start() -> Result<Option<Browser>, Error> {
        match blocking(|| packages::unpacked("chromium-headless-shell", &PACKAGES, MEGABYTES)).await {
            Ok(files) => Browser::of(&files).await.map(Some),
            Err(why) => {
                eprintln!("skipped: no browser: {why}");
                Ok(None)
            }
        }
    }

    async fn of(files: &Path) -> Result<Browser, Error> {
        let folder = Folder::new("browser")?;
        let log_path = folder.path().join("log");
        let log = File::create(&log_path).map_err(Error::file("make", &log_path))?;
        let libraries = files.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
        let mut child = Command::new("sh")
            .args(["-c", ON_PIPES])
            .arg(files.join("usr/lib/chromium/chromium-headless-shell"))
            // It shows pages of programs under test only, and its sandbox does not work for root and in many containers.
            .args(["--no-sandbox", "--remote-debugging-pipe", "--disable-gpu", "--hide-scrollbars"])
            .arg(format!("--user-data-dir={}", folder.path().display()))
            .arg("about:blank")
            .env("LD_LIBRARY_PATH", joined(&[&libraries, &libraries.join("pulseaudio")]))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(Error::system("start the browser"))?;
        guard::register(child.id().unwrap_or_default())?;
        let no_pipe = || Error::system("talk to the browser")(std::io::Error::other("no pipe"));
        let input = child.stdin.take().ok_or_else(no_pipe)?;
        let output = BufReader::new(child.stdout.take().ok_or_else(no_pipe)?);
        let mut browser = Browser { _child: child, input, output, sent: 0, session: None, folder };
        let target = browser.command("Target.createTarget", json!({"url": "about:blank"})).await?;
        let attach = json!({"targetId": member(&target, "/targetId"), "flatten": true});
        let session = browser.command("Target.attachToTarget", attach).await?;
        browser.session = member(&session, "/sessionId").as_str().map(str::to_owned);
        Ok(browser)
    }

    /// Opens an address in the page.
    pub async fn open(&mut self, url: &str, scheme: Scheme) -> Result<(), Error> {
        let colours = match scheme {
            Scheme::Light => "light",
            Scheme::Dark => "dark",
        };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": colours}]});
        self.command("Emulation.setEmulatedMedia", media).await?;
        self.resize(WIDTH).await?;
        self.command("Page.navigate", json!({"url": url})).await.map(drop)
    }

    /// The value of an expression in the page, which its Content-Security-Policy does not concern.
    pub async fn evaluate(&mut self, expression: &str) -> Result<Value, Error> {
        let how = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.command("Runtime.evaluate", how).await?;
        if let Some(thrown) = answer.get("exceptionDetails") {
            return Err(failed("evaluating in the page", thrown));
        }
        Ok(member(&answer, "/result/value"))
    }

    /// The text that a person sees.
    pub async fn text(&mut self) -> Result<String, Error> {
        let text = self.evaluate("document.body?.innerText ?? ''").await?;
        Ok(text.as_str().unwrap_or_default().to_owned())
    }

    /// Waits until a person sees this text.
    pub async fn until_text(&mut self, text: &str, limit: Duration) -> Result<(), Error> {
        wait::until(format!("'{text}' on the page"), limit, async || match self.text().await {
            Ok(seen) if seen.contains(text) => Ok(()),
            Ok(seen) => Err(seen),
            Err(error) => Err(error.to_string()),
        })
        .await
    }

    /// Writes a picture of the whole page, as PNG.
    pub async fn screenshot(&mut self, file: &Path) -> Result<(), Error> {
        let height = self.evaluate("document.documentElement.scrollHeight").await?;
        self.resize(height.as_u64().and_then(|height| height.try_into().ok()).unwrap_or(WIDTH)).await?;
        let picture = self.command("Page.captureScreenshot", json!({"format": "png"})).await?;
        let bytes = STANDARD.decode(member(&picture, "/data").as_str().unwrap_or_default());
        let bytes = bytes.map_err(|error| failed("taking a picture", &json!(error.to_string())))?;
        fs::write(file, bytes).map_err(Error::file("write", file))
    }

    async fn resize(&mut self, height: u32) -> Result<(), Error> {
        let size = json!({"width": WIDTH, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.command("Emulation.setDeviceMetricsOverride", size).await.map(drop)
    }

    async fn command(&mut self, method: &str, parameters: Value) -> Result<Value, Error> {
        match tokio::time::timeout(ANSWERS_WITHIN, self.ask(method, parameters)).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::Timeout {
                what: format!("an answer of the browser to {method}"),
                limit: ANSWERS_WITHIN,
                seen: "none".to_owned(),
            }),
        }
    }

    async fn ask(&mut self, method: &str, parameters: Value) -> Result<Value, Error> {
        self.sent += 1;
        let mut message = json!({"id": self.sent, "method": method, "params": parameters});
        if let (Value::Object(members), Some(session)) = (&mut message, &self.session) {
            members.insert("sessionId".to_owned(), json!(session));
        }
        let broken = Error::system;
        self.input.write_all(format!("{message}\0").as_bytes()).await.map_err(broken("ask the browser"))?;
        loop {
            let mut line = Vec::new();
            let read = self.output.read_until(0, &mut line).await;
            if read.map_err(broken("read from the browser"))? == 0 {
                let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                return Err(Error::Ended { server: "the browser".to_owned(), log });
            }
            line.pop();
            let answer: Value = serde_json::from_slice(&line).unwrap_or_default();
            if member(&answer, "/id") != self.sent {
                continue;
            }
            return match answer.get("error") {
                Some(error) => Err(failed(method, error)),
                None => Ok(member(&answer, "/result")),
            };
        }
    }
}

/// `null` where there is none.
fn member(value: &Value, pointer: &str) -> Value {
    value.pointer(pointer).cloned().unwrap_or_default()
}

fn failed(doing: &str, why: &Value) -> Error {
    Error::Browser { doing: doing.to_owned(), detail: why.to_string() }
}

fn joined(folders: &[&Path]) -> OsString {
    std::env::join_paths(folders).unwrap_or_default()
}
