//! A run of `cargo xtask demo` as an animated SVG: the lines that it printed, in its colours, scrolling as in a terminal.
//!
//! The run is a child process, so that every line is seen as a person sees it. Where animations are off or unknown, the picture
//! shows the last lines.

use std::fmt::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::Failure;
use crate::paint;

/// Rows of the terminal.
const ROWS: usize = 26;
/// Pixels between two rows.
const ROW: usize = 19;
/// Pixels of a column, at a font size of 14. The widest of the common monospace fonts has 8.43.
const COLUMN: usize = 9;
/// Pixels around the rows.
const MARGIN: usize = 16;
/// Pixels of the bar with the command.
const BAR: usize = 34;

/// Slower than this a reader waits, faster than this a reader cannot follow.
const PACE: [Duration; 2] = [Duration::from_millis(150), Duration::from_millis(1_500)];
/// How long the last lines stay before the animation starts again.
const END: Duration = Duration::from_secs(15);

/// A printed line, with its escape sequences.
#[derive(Clone, Debug)]
struct Line {
    at: Duration,
    text: String,
}

/// Runs `cargo xtask demo`, shows what it prints, and writes the recording if it ends well.
pub async fn demo(file: &Path) -> Result<(), Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("demo").env(paint::FORCED, "1").stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let printed = child.stdout.take().ok_or("the demo has no standard output")?;
    let (started, mut printed, mut lines) = (Instant::now(), BufReader::new(printed).lines(), Vec::new());
    while let Some(text) = printed.next_line().await? {
        println!("{text}");
        lines.push(Line { at: started.elapsed(), text });
    }
    if !child.wait().await?.success() {
        return Err("the demo failed, so there is no recording".into());
    }
    std::fs::write(file, svg("cargo xtask demo", &lines)?)?;
    println!("{}", file.display());
    Ok(())
}

fn svg(command: &str, lines: &[Line]) -> Result<String, Failure> {
    let columns =
        lines.iter().map(|line| pieces(&line.text).map(|(_, text)| text.chars().count()).sum::<usize>());
    let columns = columns.max().unwrap_or_default();
    let (width, height) = (columns * COLUMN + 2 * MARGIN, BAR + ROWS * ROW + MARGIN);
    let end = scrolled(lines.len());
    let mut svg = String::new();
    write!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-labelledby="title desc">
  <title id="title">{command}</title>
  <desc id="desc">Recording of a terminal, made by "{command} --record". The same text is in the lines of this file.</desc>
  <style>
    .page {{ fill: #f6f8fa; stroke: #d0d7de; }}
    text {{ font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre; fill: #1f2328; }}
    .bold {{ font-weight: 700; }}
    .good {{ fill: #116329; }}
    .bad {{ fill: #a40e26; }}
    .notable {{ fill: #0550ae; }}
    .faint {{ fill: #57606a; }}
    @media (prefers-color-scheme: dark) {{
      .page {{ fill: #0d1117; stroke: #30363d; }}
      text {{ fill: #e6edf3; }}
      .good {{ fill: #56d364; }}
      .bad {{ fill: #ff7b72; }}
      .notable {{ fill: #79c0ff; }}
      .faint {{ fill: #9da7b1; }}
    }}
    .lines {{ transform: translateY({end}px); }}
    @media (prefers-reduced-motion: no-preference) {{
      .lines {{ animation: scroll {total:.2}s step-end infinite; }}
    }}
    @keyframes scroll {{
{keyframes}    }}
  </style>
  <rect class="page" x="0.5" y="0.5" width="{frame_width}" height="{frame_height}" rx="8"/>
  <text x="{MARGIN}" y="23">$ {command}</text>
  <svg y="{BAR}" width="{width}" height="{window}">
    <g class="lines" xml:space="preserve">
{rows}    </g>
  </svg>
</svg>
"#,
        total = total(lines).as_secs_f64(),
        keyframes = keyframes(lines),
        frame_width = width - 1,
        frame_height = height - 1,
        window = ROWS * ROW,
        rows = rows(lines),
    )?;
    Ok(svg)
}

/// How far the lines have moved up, in pixels, when `printed` of them stand in the window.
fn scrolled(printed: usize) -> i64 {
    let rows = i64::try_from(ROWS).unwrap_or_default() - i64::try_from(printed).unwrap_or_default();
    rows * i64::try_from(ROW).unwrap_or_default()
}

/// When each line appears, at a pace at which it can be read.
fn paced(lines: &[Line]) -> Vec<Duration> {
    let [shortest, longest] = PACE;
    let (mut at, mut before) = (Duration::ZERO, Duration::ZERO);
    let pace = |line: &Line| {
        at += line.at.saturating_sub(before).clamp(shortest, longest);
        before = line.at;
        at
    };
    lines.iter().map(pace).collect()
}

fn total(lines: &[Line]) -> Duration {
    paced(lines).last().copied().unwrap_or_default() + END
}

fn keyframes(lines: &[Line]) -> String {
    let total = total(lines).as_secs_f64();
    let frames = std::iter::once(Duration::ZERO).chain(paced(lines)).enumerate();
    let frame = |(printed, at): (usize, Duration)| {
        let percent = 100.0 * at.as_secs_f64() / total;
        format!("      {percent:.2}% {{ transform: translateY({}px); }}\n", scrolled(printed))
    };
    frames.map(frame).collect()
}

fn rows(lines: &[Line]) -> String {
    let row = |(number, line): (usize, &Line)| {
        let spans: String = pieces(&line.text).map(|(code, text)| span(code, text)).collect();
        format!("      <text x=\"{MARGIN}\" y=\"{}\">{spans}</text>\n", (number + 1) * ROW - 5)
    };
    lines.iter().enumerate().map(row).collect()
}

fn span(code: &str, text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let class = match code {
        paint::HEADING => "bold",
        paint::GOOD => "good",
        paint::BAD => "bad",
        paint::NOTABLE => "notable",
        paint::FAINT => "faint",
        _ => return text,
    };
    format!("<tspan class=\"{class}\">{text}</tspan>")
}

/// The pieces of a line with the codes they are painted with, as `paint` does it: one code before a text, and a reset after it.
fn pieces(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut parts = line.split("\x1b[");
    let plain = parts.next().map(|text| ("", text));
    let painted = parts.filter_map(|part| part.split_once('m'));
    plain.into_iter().chain(painted).filter(|(_, text)| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(milliseconds: u64, text: &str) -> Line {
        Line { at: Duration::from_millis(milliseconds), text: text.to_owned() }
    }

    #[test]
    fn colours_become_classes_and_signs_of_markup_become_text() {
        let painted = "  \x1b[36m→\x1b[0m a<b & c \x1b[2m0.3 ms\x1b[0m";
        let spans: String = pieces(painted).map(|(code, text)| span(code, text)).collect();
        assert_eq!(
            spans,
            "  <tspan class=\"notable\">→</tspan> a&lt;b &amp; c <tspan class=\"faint\">0.3 ms</tspan>"
        );
    }

    #[test]
    fn lines_appear_in_order_neither_too_fast_nor_too_slow_and_the_last_ones_stay() {
        let lines = [line(0, "first"), line(1, "at once"), line(60_000, "much later"), line(60_500, "last")];
        let at: Vec<u128> = paced(&lines).iter().map(Duration::as_millis).collect();
        assert_eq!(at, [150, 300, 1_800, 2_300]);
        assert_eq!(total(&lines).as_millis(), 17_300);
        let frames = keyframes(&lines);
        let frames: Vec<&str> = frames.lines().map(str::trim).collect();
        assert_eq!(frames.first(), Some(&"0.00% { transform: translateY(494px); }"), "an empty terminal");
        assert_eq!(frames.last(), Some(&"13.29% { transform: translateY(418px); }"), "four rows at its end");
        let svg = svg("cargo xtask demo", &lines).unwrap();
        assert!(svg.contains(".lines { transform: translateY(418px); }"), "without an animation: its end");
    }
}
