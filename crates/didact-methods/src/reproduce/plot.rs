//! The picture of a result: the claim's metric by arm and seed, and curves. Black on an opaque white ground, so that it can
//! be read on light and dark pages.

use super::error::ReproduceError;
use super::record::{ArmRecord, Record, moments};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::collections::BTreeSet;

const WIDTH: i32 = 900;
/// Height of an arm's row.
const ROW: i32 = 24;
/// Room for the names of arms.
const NAMES: i32 = 190;
const MARGIN: i32 = 20;
const TITLE: i32 = 30;
const CURVES: i32 = 300;
/// Most curves in one panel.
const MOST_CURVES: usize = 8;
/// Okabe and Ito's colours, which people who confuse red and green can tell apart, without the yellow that vanishes on
/// white.
const COLOURS: [RGBColor; MOST_CURVES] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
    RGBColor(140, 140, 140),
];
const GREY: RGBColor = RGBColor(150, 150, 150);

/// Draws a result as SVG.
///
/// # Errors
/// When the picture cannot be drawn.
pub(super) fn svg(record: &Record) -> Result<String, ReproduceError> {
    let arms: Vec<&ArmRecord> = record.shown_arms().filter(|arm| !arm.values.is_empty()).collect();
    let names: BTreeSet<&String> = record.arms.iter().flat_map(|arm| arm.curves.keys()).collect();
    let names: Vec<&String> = names.into_iter().collect();
    let dots = TITLE + ROW * arms.len() as i32 + 60;
    let height = dots + CURVES * names.len().div_ceil(2) as i32;
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (WIDTH as u32, height as u32)).into_drawing_area();
        draw(&root, record, &arms, &names, dots).map_err(|error| ReproduceError::Plot(error.to_string()))?;
    }
    Ok(text)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Failure = Box<dyn std::error::Error>;

fn draw(root: &Area<'_>, record: &Record, arms: &[&ArmRecord], names: &[&String], dots: i32) -> Result<(), Failure> {
    root.fill(&WHITE)?;
    let (top, bottom) = root.split_vertically(dots);
    draw_arms(&top, record, arms)?;
    if names.is_empty() {
        return Ok(());
    }
    let columns = names.len().min(2);
    let panels = bottom.split_evenly((names.len().div_ceil(2), columns));
    for (name, panel) in names.iter().zip(&panels) {
        draw_curves(panel, record, name)?;
    }
    Ok(())
}

fn font(size: i32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&BLACK)
}

/// A dot per seed, a bar at the mean.
fn draw_arms(area: &Area<'_>, record: &Record, arms: &[&ArmRecord]) -> Result<(), Failure> {
    let better = if record.higher_is_better { "more is better" } else { "less is better" };
    let title = format!(
        "{}, size {}: {} by seed ({better}); {}",
        record.method,
        record.size.as_str(),
        record.metric,
        record.verdict.as_str()
    );
    area.draw(&Text::new(title, (MARGIN, 8), font(16)))?;
    let values = arms.iter().flat_map(|arm| arm.values.iter().copied());
    let (low, high) = range(values);
    let mut chart = ChartBuilder::on(area)
        .margin_top(TITLE)
        .margin_right(MARGIN)
        .set_label_area_size(LabelAreaPosition::Left, NAMES)
        .set_label_area_size(LabelAreaPosition::Bottom, 40)
        .build_cartesian_2d(low..high, 0.0..arms.len().max(1) as f64)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(225, 225, 225))
        .x_labels(8)
        .x_desc(record.metric.clone())
        .axis_desc_style(font(13))
        .label_style(font(12))
        .draw()?;
    for (i, arm) in arms.iter().enumerate() {
        let y = (arms.len() - 1 - i) as f64 + 0.5;
        let colour = if arm.name == record.compared.method {
            COLOURS[0]
        } else if arm.name == record.compared.baseline {
            COLOURS[1]
        } else {
            GREY
        };
        let right = font(13).pos(Pos::new(HPos::Right, VPos::Center));
        let (x, row) = chart.backend_coord(&(low, y));
        let (left, above) = area.get_base_pixel();
        area.draw(&Text::new(arm.name.clone(), (x - left - 8, row - above), right))?;
        chart.draw_series(arm.values.iter().map(|&v| Circle::new((v, y), 4, colour.mix(0.55).filled())))?;
        let (mean, _) = moments(&arm.values);
        chart.draw_series([PathElement::new(vec![(mean, y - 0.33), (mean, y + 0.33)], colour.stroke_width(3))])?;
    }
    Ok(())
}

/// One line per arm, the two that are compared first.
fn draw_curves(area: &Area<'_>, record: &Record, name: &str) -> Result<(), Failure> {
    let mut arms: Vec<&ArmRecord> = record.arms.iter().filter(|arm| arm.curves.contains_key(name)).collect();
    let rank = |arm: &&ArmRecord| match &arm.name {
        name if *name == record.compared.method => 0,
        name if *name == record.compared.baseline => 1,
        _ => 2,
    };
    arms.sort_by_key(rank);
    arms.truncate(MOST_CURVES);
    let points = |arm: &ArmRecord| -> Vec<(f64, f64)> {
        let curve = &arm.curves[name];
        curve.x.iter().copied().zip(curve.y.iter().copied()).collect()
    };
    let all: Vec<(f64, f64)> = arms.iter().flat_map(|arm| points(arm)).collect();
    let (x_low, x_high) = range(all.iter().map(|p| p.0));
    let (y_low, y_high) = range(all.iter().map(|p| p.1));
    let mut chart = ChartBuilder::on(area)
        .margin(MARGIN)
        .caption(name, font(14))
        .set_label_area_size(LabelAreaPosition::Left, 48)
        .set_label_area_size(LabelAreaPosition::Bottom, 28)
        .build_cartesian_2d(x_low..x_high, y_low..y_high)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(225, 225, 225))
        .x_labels(6)
        .y_labels(6)
        .label_style(font(12))
        .draw()?;
    for (arm, colour) in arms.iter().zip(COLOURS) {
        chart
            .draw_series(LineSeries::new(points(arm), colour.stroke_width(2)))?
            .label(arm.name.clone())
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(RGBColor(225, 225, 225))
        .label_font(font(12))
        .draw()?;
    Ok(())
}

/// The span of values with some room around it.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return (0.0, 1.0);
    }
    let room = if high > low { (high - low) * 0.05 } else { low.abs().max(1.0) * 0.05 };
    (low - room, high + room)
}
