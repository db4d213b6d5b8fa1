//! Two kinds of pictures as SVG: horizontal bars, and lines over time.

const WIDTH: f64 = 860.0;
/// Room for the names of bars.
const NAMES: f64 = 230.0;
/// Room for the figure behind a bar.
const FIGURE: f64 = 90.0;
const BAR: f64 = 24.0;
const LINES_HEIGHT: f64 = 320.0;
/// Distinct without colour vision, and in print.
const COLOURS: [&str; 6] = ["#1f5fa8", "#e08a1e", "#3c9a5f", "#9a4f96", "#7f7f7f", "#b8433f"];

/// Bars of parts that add up, each with a name; `parts` names what they are made of.
pub fn bars(title: &str, unit: &str, parts: &[&str], rows: &[(String, Vec<f64>)]) -> String {
    let most = rows.iter().map(|(_, values)| values.iter().sum::<f64>()).fold(f64::EPSILON, f64::max);
    let scale = (WIDTH - NAMES - FIGURE) / most;
    let mut body = legend(parts);
    for (number, (name, values)) in rows.iter().enumerate() {
        let y = 70.0 + number as f64 * (BAR + 8.0);
        body += &text(NAMES - 10.0, y + 17.0, "end", name);
        let mut x = NAMES;
        for (value, colour) in values.iter().zip(COLOURS.iter().cycle()) {
            let width = value * scale;
            body += &format!(
                "<rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>\n"
            );
            x += width;
        }
        body += &text(x + 8.0, y + 17.0, "start", &format!("{} {unit}", figure(values.iter().sum())));
    }
    picture(title, 80.0 + rows.len() as f64 * (BAR + 8.0), &body)
}

/// Lines of points (seconds, value) from zero.
pub fn lines(title: &str, unit: &str, series: &[(String, Vec<(f64, f64)>)]) -> String {
    let points = || series.iter().flat_map(|(_, points)| points);
    let (last, most) =
        points().fold((f64::EPSILON, f64::EPSILON), |most, point| (most.0.max(point.0), most.1.max(point.1)));
    let (left, bottom, top) = (70.0, LINES_HEIGHT - 40.0, 80.0);
    let x = |seconds: f64| left + seconds / last * (WIDTH - left - 30.0);
    let y = |value: f64| bottom - value / most * (bottom - top);
    let names: Vec<&str> = series.iter().map(|(name, _)| name.as_str()).collect();
    let mut body = legend(&names);
    for quarter in 0..=4 {
        let part = f64::from(quarter) / 4.0;
        let (height, second) = (y(part * most), part * last);
        body += &format!("<path d=\"M{left} {height:.1}H{}\" stroke=\"#ddd\"/>\n", WIDTH - 30.0);
        body += &text(left - 8.0, height + 4.0, "end", &figure(part * most));
        body += &text(x(second), bottom + 20.0, "middle", &format!("{second:.1} s"));
    }
    body += &text(left - 8.0, top - 12.0, "end", unit);
    for ((_, points), colour) in series.iter().zip(COLOURS.iter().cycle()) {
        let path: Vec<String> =
            points.iter().map(|(seconds, value)| format!("{:.1},{:.1}", x(*seconds), y(*value))).collect();
        body += &format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n",
            path.join(" ")
        );
    }
    picture(title, LINES_HEIGHT, &body)
}

fn picture(title: &str, height: f64, body: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\" \
         role=\"img\">\n<title>{title}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"20\" y=\"26\" font-size=\"16\" font-weight=\"bold\">{title}</text>\n{body}</svg>\n",
        title = escaped(title)
    )
}

/// What the colours mean; one part needs no explanation.
fn legend(parts: &[&str]) -> String {
    if parts.len() < 2 {
        return String::new();
    }
    let mut x = 20.0;
    let mut body = String::new();
    for (part, colour) in parts.iter().zip(COLOURS.iter().cycle()) {
        body += &format!("<rect x=\"{x}\" y=\"40\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\n");
        body += &text(x + 17.0, 51.0, "start", part);
        x += 34.0 + part.chars().count() as f64 * 7.2;
    }
    body
}

fn text(x: f64, y: f64, anchor: &str, text: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>\n", escaped(text))
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
        for expected in ["T &amp; t", "a &lt;b&gt;", "40.0 us", "20.0 us", "own", "other"] {
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
        let drawn = lines("Memory", "MiB", &series);
        assert!(drawn.contains("points=\"70.0,280.0 830.0,80.0\""), "{drawn}");
        assert!(drawn.contains(">250<") && drawn.contains(">10.0 s<"), "{drawn}");
    }

    #[test]
    fn nothing_measured_is_an_empty_picture() {
        for drawn in [
            bars("T", "us", &[], &[]),
            bars("T", "us", &[], &[(String::new(), vec![0.0])]),
            lines("T", "MiB", &[]),
        ] {
            assert!(drawn.ends_with("</svg>\n") && !drawn.contains("NaN"), "{drawn}");
        }
    }
}
