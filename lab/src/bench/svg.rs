//! Two kinds of pictures as SVG, in the style of the other pictures of the documents: horizontal bars, and lines.

use std::fmt::Write as _;

/// Any of the other pictures: all have one style.
const DRAWN: &str = include_str!("../../../docs/images/data-flow.svg");
const WIDTH: f64 = 800.0;
/// Room for the names of bars.
const NAMES: f64 = 265.0;
/// Room for the figure behind a bar.
const FIGURE: f64 = 90.0;
const BAR: f64 = 24.0;
const LINES_HEIGHT: f64 = 320.0;
/// Distinct without colour vision, in print, and on a dark page.
const COLOURS: [&str; 6] = ["#3b82c4", "#e08a1e", "#3c9a5f", "#b06ab3", "#8c959f", "#d1605d"];

/// Bars of parts that add up, each with a name; `parts` names what they are made of.
pub fn bars(title: &str, unit: &str, parts: &[&str], rows: &[(String, Vec<f64>)]) -> String {
    let sum = |values: &[f64]| values.iter().sum::<f64>();
    let most = rows.iter().map(|(_, values)| sum(values)).fold(f64::EPSILON, f64::max);
    let scale = (WIDTH - NAMES - FIGURE) / most;
    let (mut body, mut said) = (legend(parts), Vec::new());
    for (number, (name, values)) in rows.iter().enumerate() {
        let y = 70.0 + number as f64 * (BAR + 8.0);
        body += &text("text", NAMES - 10.0, y + 17.0, "end", name);
        let mut x = NAMES;
        for (value, colour) in values.iter().zip(COLOURS.iter().cycle()) {
            let width = value * scale;
            body += &format!(
                "<rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>\n"
            );
            x += width;
        }
        let reached = format!("{} {unit}", figure(sum(values)));
        body += &text("text", x + 8.0, y + 17.0, "start", &reached);
        said.push(format!("{name}: {reached}"));
    }
    picture(title, &said.join("; "), 80.0 + rows.len() as f64 * (BAR + 8.0), &body)
}

/// Lines of points (x, y) from zero.
pub fn lines(title: &str, x_unit: &str, y_unit: &str, series: &[(String, Vec<(f64, f64)>)]) -> String {
    let points = || series.iter().flat_map(|(_, points)| points);
    let (last, most) =
        points().fold((f64::EPSILON, f64::EPSILON), |most, point| (most.0.max(point.0), most.1.max(point.1)));
    let (left, bottom, top) = (70.0, LINES_HEIGHT - 40.0, 80.0);
    let x = |value: f64| left + value / last * (WIDTH - left - 30.0);
    let y = |value: f64| bottom - value / most * (bottom - top);
    let names: Vec<&str> = series.iter().map(|(name, _)| name.as_str()).collect();
    let mut body = legend(&names);
    for quarter in 0..=4 {
        let part = f64::from(quarter) / 4.0;
        let (height, value) = (y(part * most), part * last);
        body +=
            &format!("<path class=\"line\" opacity=\"0.4\" d=\"M{left} {height:.1}H{}\"/>\n", WIDTH - 30.0);
        body += &text("quiet", left - 8.0, height + 4.0, "end", &figure(part * most));
        body += &text("quiet", x(value), bottom + 20.0, "middle", &format!("{value:.1} {x_unit}"));
    }
    body += &text("quiet", left - 8.0, top - 12.0, "end", y_unit);
    let mut said = Vec::new();
    for ((name, points), colour) in series.iter().zip(COLOURS.iter().cycle()) {
        let path: Vec<String> =
            points.iter().map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1))).collect();
        body += &format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n",
            path.join(" ")
        );
        let highest = points.iter().map(|point| point.1).fold(0.0, f64::max);
        said.push(format!("{name}: at most {} {y_unit}", figure(highest)));
    }
    picture(title, &said.join("; "), LINES_HEIGHT, &body)
}

fn picture(title: &str, said: &str, height: f64, body: &str) -> String {
    let (title, said) = (escaped(title), escaped(said));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-labelledby=\"title desc\" font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\">\n  \
         <title id=\"title\">{title}</title>\n  <desc id=\"desc\">{said}</desc>\n  {style}\n\
         <rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\" rx=\"8\"/>\n\
         <text class=\"name\" x=\"20\" y=\"26\">{title}</text>\n{body}</svg>\n",
        style = style()
    )
}

/// The style of all pictures.
fn style() -> &'static str {
    let end = "</style>";
    let style = DRAWN.find("<style>").zip(DRAWN.find(end));
    style.and_then(|(from, to)| DRAWN.get(from..to + end.len())).unwrap_or_default()
}

/// What the colours mean; one part needs no explanation.
fn legend(parts: &[&str]) -> String {
    if parts.len() < 2 {
        return String::new();
    }
    let (mut x, mut y) = (20.0, 40.0);
    let mut body = String::new();
    for (part, colour) in parts.iter().zip(COLOURS.iter().cycle()) {
        let width = 34.0 + part.chars().count() as f64 * 7.2;
        if x + width > WIDTH {
            (x, y) = (20.0, y + 16.0);
        }
        let _ = writeln!(body, "<rect x=\"{x}\" y=\"{y}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>");
        body += &text("text", x + 17.0, y + 11.0, "start", part);
        x += width;
    }
    body
}

fn text(class: &str, x: f64, y: f64, anchor: &str, text: &str) -> String {
    format!(
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>\n",
        escaped(text)
    )
}

/// Whole from 100 on, else with one place.
fn figure(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_figures_and_name_them() {
        let rows = [("a <b>".to_owned(), vec![30.0, 10.0]), ("half".to_owned(), vec![20.0])];
        let drawn = bars("T & t", "us", &["own", "other"], &rows);
        for expected in ["T &amp; t", "a &lt;b&gt;", "40.0 us", "20.0 us", "own", "other", "half: 20.0 us<"] {
            assert!(drawn.contains(expected), "{expected}: {drawn}");
        }
        let full = WIDTH - NAMES - FIGURE;
        for part in [0.75, 0.25, 0.5] {
            assert!(drawn.contains(&format!("width=\"{:.1}\"", full * part)), "{part}: {drawn}");
        }
    }

    #[test]
    fn lines_reach_from_the_axes_to_the_corner() {
        let series = [("memory".to_owned(), vec![(0.0, 0.0), (10.0, 250.0)])];
        let drawn = lines("Memory", "s", "MiB", &series);
        assert!(drawn.contains("points=\"70.0,280.0 770.0,80.0\""), "{drawn}");
        assert!(drawn.contains(">250<") && drawn.contains(">10.0 s<"), "{drawn}");
        assert!(drawn.contains("memory: at most 250 MiB<"), "{drawn}");
    }

    #[test]
    fn pictures_have_the_style_of_the_documents() {
        for drawn in [bars("T", "us", &[], &[]), lines("T", "s", "MiB", &[])] {
            for part in
                ["(prefers-color-scheme: dark)", "</style>", "<desc id=\"desc\">", "viewBox=\"0 0 800 "]
            {
                assert!(drawn.contains(part), "{part}: {drawn}");
            }
        }
    }

    #[test]
    fn nothing_measured_is_an_empty_picture() {
        for drawn in [
            bars("T", "us", &[], &[]),
            bars("T", "us", &[], &[(String::new(), vec![0.0])]),
            lines("T", "s", "MiB", &[]),
        ] {
            assert!(drawn.ends_with("</svg>\n") && !drawn.contains("NaN"), "{drawn}");
        }
    }
}
