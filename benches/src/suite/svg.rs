//! Plots: horizontal bars of ratios on a logarithmic axis, from 1 to the ratio, with their targets.

use std::fmt::Write;

use super::outcome::Target;

/// One ratio.
#[derive(Clone, Debug)]
pub struct Bar {
    /// What it is of.
    pub label: String,
    /// The ratio.
    pub value: f64,
    /// What it has to be.
    pub target: Option<Target>,
}

// Pixels.
const WIDTH: f64 = 960.0;
const LEFT: f64 = 470.0;
const RIGHT: f64 = 840.0;
const TOP: f64 = 76.0;
const ROW: f64 = 26.0;
const BAR: f64 = 14.0;

/// Colours of both modes; a picture on a page follows the mode of the reader's system.
const STYLE: &str = "\
svg{font:13px system-ui,-apple-system,'Segoe UI',sans-serif}\
.page{fill:#ffffff}.text{fill:#1f2328}.soft{fill:#59636e}.grid{stroke:#d1d9e0}.one{stroke:#59636e}\
.good{fill:#2f7fd0}.bad{fill:#d1622b}.none{fill:#8c959f}.mark{stroke:#1f2328;stroke-width:2.5}\
.title{font-size:15px;font-weight:600}.end{text-anchor:end}.middle{text-anchor:middle}\
@media(prefers-color-scheme:dark){\
.page{fill:#0d1117}.text{fill:#f0f6fc}.soft{fill:#9198a1}.grid{stroke:#3d444d}.one{stroke:#9198a1}\
.good{fill:#4a9bf0}.bad{fill:#f0803c}.none{fill:#7d8590}.mark{stroke:#f0f6fc}}";

/// Draws `bars` under a title, and under it where they come from.
pub fn plot(bars: &[Bar], title: &str, origin: &str) -> String {
    let scale = Scale::of(bars);
    let bottom = TOP + ROW * bars.len() as f64;
    let height = bottom + 56.0;
    let mut svg = String::new();
    let out = &mut svg;
    line(
        out,
        &format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">"
        ),
    );
    line(out, &format!("<title>{}</title>", escape(title)));
    line(out, &format!("<style>{STYLE}</style>"));
    line(out, &format!("<rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\"/>"));
    text(out, 16.0, 26.0, "text title", title);
    text(out, 16.0, 46.0, "soft", origin);
    text(out, WIDTH - 16.0, TOP - 8.0, "soft end", "ratio (target)");
    for tick in scale.ticks() {
        let (x, class) = (scale.x(tick), if tick == 1.0 { "one" } else { "grid" });
        stroke(out, class, x, TOP - 4.0, bottom + 4.0);
        text(out, x, bottom + 20.0, "soft middle", &tick.to_string());
    }
    for (row, bar) in bars.iter().enumerate() {
        draw(out, bar, &scale, TOP + ROW * row as f64);
    }
    legend(out, bottom + 44.0);
    line(out, "</svg>");
    svg
}

fn draw(out: &mut String, bar: &Bar, scale: &Scale, top: f64) {
    let baseline = top + ROW / 2.0 + 4.5;
    text(out, LEFT - 12.0, baseline, "text end", &bar.label);
    let (value, class) = match bar.target {
        None => (format!("{:.2}", bar.value), "none"),
        Some(target) => {
            let sign = if matches!(target, Target::AtMost(_)) { '≤' } else { '≥' };
            let class = if target.holds(bar.value) { "good" } else { "bad" };
            (format!("{:.2} ({sign} {})", bar.value, target.bound()), class)
        }
    };
    if bar.value.is_finite() {
        let (one, end) = (scale.x(1.0), scale.x(bar.value));
        let (x, width) = (one.min(end), (end - one).abs().max(1.0));
        let y = top + (ROW - BAR) / 2.0;
        line(
            out,
            &format!(
                "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\"/>"
            ),
        );
    }
    if let Some(target) = bar.target {
        stroke(out, "mark", scale.x(target.bound()), top + 3.0, top + ROW - 3.0);
    }
    text(out, WIDTH - 16.0, baseline, "text end", &value);
}

fn legend(out: &mut String, y: f64) {
    for (x, class, words) in [
        (LEFT, "good", "target met"),
        (LEFT + 105.0, "bad", "missed"),
        (LEFT + 185.0, "none", "no target"),
    ] {
        line(
            out,
            &format!(
                "<rect class=\"{class}\" x=\"{x}\" y=\"{}\" width=\"12\" height=\"12\"/>",
                y - 11.0
            ),
        );
        text(out, x + 18.0, y, "soft", words);
    }
    stroke(out, "mark", LEFT + 285.0, y - 12.0, y + 3.0);
    text(out, LEFT + 294.0, y, "soft", "target");
}

fn text(out: &mut String, x: f64, y: f64, class: &str, words: &str) {
    line(
        out,
        &format!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escape(words)),
    );
}

fn stroke(out: &mut String, class: &str, x: f64, top: f64, bottom: f64) {
    line(
        out,
        &format!(
            "<line class=\"{class}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{bottom}\"/>"
        ),
    );
}

fn line(out: &mut String, text: &str) {
    writeln!(out, "{text}").expect("a string takes it all");
}

/// Keeps words from being taken for markup.
fn escape(words: &str) -> String {
    let mut safe = String::new();
    for letter in words.chars() {
        match letter {
            '&' => safe += "&amp;",
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '"' => safe += "&quot;",
            other => safe.push(other),
        }
    }
    safe
}

/// From ratios to pixels.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    fn of(bars: &[Bar]) -> Self {
        let targets = bars.iter().filter_map(|bar| bar.target).map(Target::bound);
        let shown = bars.iter().map(|bar| bar.value).chain(targets).chain([0.8, 1.25]);
        let shown: Vec<_> = shown.filter(|value| value.is_finite() && *value > 0.0).collect();
        let low = shown.iter().copied().fold(f64::INFINITY, f64::min) / 1.1;
        let high = shown.iter().copied().fold(0.0, f64::max) * 1.1;
        Self { low, high }
    }

    /// A ratio of 0 stands at the left end.
    fn x(&self, ratio: f64) -> f64 {
        let part = (ratio.max(self.low) / self.low).ln() / (self.high / self.low).ln();
        LEFT + part.clamp(0.0, 1.0) * (RIGHT - LEFT)
    }

    /// Round numbers in reach.
    fn ticks(&self) -> impl Iterator<Item = f64> {
        let steps =
            [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0];
        steps.into_iter().filter(|step| (self.low..=self.high).contains(step))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(label: &str, value: f64, target: Option<Target>) -> Bar {
        Bar { label: label.to_owned(), value, target }
    }

    #[test]
    fn words_are_escaped() {
        assert_eq!(escape("a<b & \"c\">"), "a&lt;b &amp; &quot;c&quot;&gt;");
        let svg = plot(&[bar("<script>", 1.0, None)], "A & B", "x > y");
        assert!(!svg.contains("<script>") && svg.contains("A &amp; B") && svg.contains("x &gt; y"));
    }

    #[test]
    fn bars_are_coloured_by_their_targets_and_stay_inside() {
        let bars = [
            bar("met", 60.0, Some(Target::AtLeast(15.0))),
            bar("missed", 0.9, Some(Target::AtLeast(1.0))),
            bar("nothing", 0.0, None),
            bar("broken", f64::NAN, Some(Target::AtMost(1.0))),
        ];
        let svg = plot(&bars, "t", "o");
        for class in ["good", "bad", "none"] {
            assert!(svg.contains(&format!("<rect class=\"{class}\" x=\"")), "{class}");
        }
        let scale = Scale::of(&bars);
        assert_eq!(scale.x(0.0), LEFT);
        assert!(scale.x(60.0) <= RIGHT && scale.x(1.0) > LEFT);
        assert_eq!(scale.ticks().next(), Some(1.0));
    }

    #[test]
    fn an_empty_plot_is_a_plot() {
        let svg = plot(&[], "t", "o");
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    }
}
