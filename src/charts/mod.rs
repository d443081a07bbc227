//! Charts as PNG images: drawn with plotters, lettered with a font that is part of the program, so that they
//! look the same everywhere.

use std::sync::Once;

use anyhow::Context;
use models::evaluation::Confusion;
use plotters::coord::Shift;
use plotters::prelude::{
    BitMapBackend, ChartBuilder, DrawingArea, IntoDrawingArea, LineSeries, RGBColor, Rectangle,
    Text, WHITE,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontStyle, IntoFont, ShapeStyle, TextStyle, register_font};

/// Pixels across; twice what a page shows, for fine screens.
const WIDTH: u32 = 1_600;

/// Pixels between two bars' middles.
const BAR: i32 = 44;

const TITLE: i32 = 90;
const MARGIN: i32 = 40;

/// Letters of a name that are shown; a longer one is cut.
const NAME: usize = 28;

const INK: RGBColor = RGBColor(29, 33, 38);
const FAINT: RGBColor = RGBColor(104, 112, 122);

/// A colour.
pub type Colour = RGBColor;

/// The colours of the dashboard's light page, which differ in lightness as well, for those who see few.
pub const ACCENT: RGBColor = RGBColor(28, 95, 168);
/// For what is said in favour.
pub const POSITIVE: RGBColor = RGBColor(31, 108, 181);
/// For what is neither.
pub const NEUTRAL: RGBColor = RGBColor(134, 140, 149);
/// For what is said against.
pub const NEGATIVE: RGBColor = RGBColor(199, 92, 18);

/// For what is anything else.
pub const OTHER: RGBColor = RGBColor(120, 70, 150);

const FONT: &str = "sans-serif";

/// An image, in PNG.
pub type Png = Vec<u8>;

type Area<'pixels> = DrawingArea<BitMapBackend<'pixels>, Shift>;

/// What a bar's parts, or a chart's lines, are of.
pub type Series<'name> = (&'name str, RGBColor);

/// Horizontal bars, one a name, of one part a series.
///
/// # Errors
/// If it cannot be drawn.
pub fn bars(
    title: &str,
    series: &[Series<'_>],
    bars: &[(String, Vec<u64>)],
) -> anyhow::Result<Png> {
    let below = if series.len() > 1 { BAR } else { 0 };
    let height = TITLE + BAR * bars.len() as i32 + below + MARGIN;
    draw(title, height as u32, |area| {
        let names = style(26, &INK);
        let mut left = 0;
        for (name, _) in bars {
            left = left.max(area.estimate_text_size(&cut(name), &names)?.0 as i32);
        }
        let left = left + MARGIN + 16;
        // Room for the number behind the longest bar.
        let room = f64::from(WIDTH as i32 - left - MARGIN - 130);
        let total = |parts: &[u64]| parts.iter().sum::<u64>();
        let longest = bars
            .iter()
            .map(|(_, parts)| total(parts))
            .max()
            .unwrap_or(0)
            .max(1);
        let pixels = |count: u64| (count as f64 / longest as f64 * room) as i32;
        for (place, (name, parts)) in bars.iter().enumerate() {
            let middle = TITLE + BAR / 2 + BAR * place as i32;
            let before = names.clone().pos(Pos::new(HPos::Right, VPos::Center));
            area.draw(&Text::new(cut(name), (left - 16, middle), before))?;
            let mut start = 0;
            for (count, (_, colour)) in parts.iter().zip(series) {
                let (from, to) = (left + pixels(start), left + pixels(start + count));
                let corners = [(from, middle - 14), (to, middle + 14)];
                area.draw(&Rectangle::new(corners, colour.filled()))?;
                start += count;
            }
            let after = style(24, &FAINT).pos(Pos::new(HPos::Left, VPos::Center));
            let end = (left + pixels(start) + 12, middle);
            area.draw(&Text::new(crate::progress::thousands(start), end, after))?;
        }
        legend(area, series, left, height - MARGIN - 8)
    })
}

/// A line a series over points that are equally far apart and have names, such as days.
///
/// # Errors
/// If it cannot be drawn.
pub fn lines(
    title: &str,
    series: &[Series<'_>],
    points: &[(String, Vec<u64>)],
) -> anyhow::Result<Png> {
    const HEIGHT: i32 = 720;
    draw(title, HEIGHT as u32, |area| {
        let highest = points.iter().flat_map(|(_, counts)| counts).max();
        let highest = highest.copied().unwrap_or(0).max(1);
        let inner = area.margin(TITLE, MARGIN + 30, MARGIN, 2 * MARGIN);
        let mut chart = ChartBuilder::on(&inner)
            .x_label_area_size(50)
            .y_label_area_size(130)
            .build_cartesian_2d(0..points.len().max(2) - 1, 0..highest + highest / 20 + 1)?;
        let name = |place: &usize| points.get(*place).map_or("", |(name, _)| name).to_owned();
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(WHITE)
            .bold_line_style(RGBColor(226, 229, 233))
            .axis_style(FAINT)
            .label_style(style(24, &FAINT))
            .x_labels(8)
            .y_labels(6)
            .x_label_formatter(&name)
            .y_label_formatter(&|count| crate::progress::thousands(*count))
            .draw()?;
        for (number, (_, colour)) in series.iter().enumerate() {
            let line = points.iter().enumerate();
            let line = line.map(|(place, (_, counts))| (place, counts[number]));
            let width = ShapeStyle::from(*colour).stroke_width(4);
            chart.draw_series(LineSeries::new(line, width))?;
        }
        legend(area, series, MARGIN + 150, HEIGHT - MARGIN - 8)
    })
}

/// Counts by given label, down, and predicted label, across; the deeper the colour, the larger the share of
/// the given label.
///
/// # Errors
/// If it cannot be drawn.
pub fn matrix(title: &str, confusion: &Confusion) -> anyhow::Result<Png> {
    const CELL: (i32, i32) = (300, 130);
    const LEFT: i32 = 330;
    let labels: Vec<_> = confusion.labels().collect();
    let height = TITLE + 80 + CELL.1 * labels.len() as i32 + MARGIN;
    draw(title, height as u32, |area| {
        let width = CELL
            .0
            .min((WIDTH as i32 - LEFT - MARGIN) / labels.len().max(1) as i32);
        let centred = Pos::new(HPos::Center, VPos::Center);
        let (heads, counts) = (style(26, &INK).pos(centred), style(34, &INK).pos(centred));
        let shares = style(24, &INK).pos(centred);
        let corner = style(24, &FAINT).pos(Pos::new(HPos::Right, VPos::Center));
        let told = "given ↓  predicted →".to_owned();
        area.draw(&Text::new(told, (LEFT - 20, TITLE + 20), corner))?;
        for (place, label) in labels.iter().enumerate() {
            let (across, down) = (
                LEFT + width * place as i32 + width / 2,
                TITLE + 60 + CELL.1 * place as i32 + CELL.1 / 2,
            );
            area.draw(&Text::new(cut(label), (across, TITLE + 20), heads.clone()))?;
            let beside = heads.clone().pos(Pos::new(HPos::Right, VPos::Center));
            area.draw(&Text::new(cut(label), (LEFT - 20, down), beside))?;
            for (column, predicted) in labels.iter().enumerate() {
                let count = confusion.count(label, predicted);
                let share = count as f64 / confusion.given(label).max(1) as f64;
                let colour = if column == place { POSITIVE } else { NEGATIVE };
                let from = (LEFT + width * column as i32, down - CELL.1 / 2);
                let corners = [from, (from.0 + width - 6, from.1 + CELL.1 - 6)];
                area.draw(&Rectangle::new(
                    corners,
                    colour.mix(0.06 + share * 0.5).filled(),
                ))?;
                let middle = (from.0 + width / 2, down - 20);
                let count = crate::progress::thousands(count);
                area.draw(&Text::new(count, middle, counts.clone()))?;
                let share = format!("{:.1} %", share * 100.0);
                area.draw(&Text::new(share, (middle.0, down + 24), shares.clone()))?;
            }
        }
        Ok(())
    })
}

/// Which colour is what, unless there is but one.
fn legend(area: &Area<'_>, series: &[Series<'_>], left: i32, middle: i32) -> anyhow::Result<()> {
    let mut at = left;
    for (name, colour) in series.iter().filter(|_| series.len() > 1) {
        let corners = [(at, middle - 11), (at + 22, middle + 11)];
        area.draw(&Rectangle::new(corners, colour.filled()))?;
        let text = style(24, &FAINT).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(
            (*name).to_owned(),
            (at + 34, middle),
            text.clone(),
        ))?;
        at += 34 + area.estimate_text_size(name, &text)?.0 as i32 + 50;
    }
    Ok(())
}

fn style(size: i32, colour: &'static RGBColor) -> TextStyle<'static> {
    TextStyle::from((FONT, size).into_font()).color(colour)
}

fn cut(name: &str) -> String {
    match name.char_indices().nth(NAME) {
        None => name.to_owned(),
        Some((end, _)) => format!("{}…", &name[..end]),
    }
}

/// Draws on white, under a title, and encodes what was drawn.
fn draw(
    title: &str,
    height: u32,
    paint: impl FnOnce(&Area<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<Png> {
    static FONT_REGISTERED: Once = Once::new();
    FONT_REGISTERED.call_once(|| {
        // What is part of the program can be read.
        let _ = register_font(FONT, FontStyle::Normal, include_bytes!("DejaVuSans.ttf"));
    });
    let mut pixels = vec![0; (WIDTH * height * 3) as usize];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE)?;
        area.draw(&Text::new(title.to_owned(), (MARGIN, 28), style(34, &INK)))?;
        paint(&area)?;
        area.present()?;
    }
    let mut image = Vec::new();
    let mut encoder = png::Encoder::new(&mut image, WIDTH, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&pixels)?;
    writer.finish().context("cannot encode an image")?;
    Ok(image)
}
