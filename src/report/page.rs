//! The report's page: no script, nothing from elsewhere.

use std::fmt::Write;

use chrono::{DateTime, Utc};

use super::Section;

const STYLE: &str = include_str!("page.css");

pub(super) fn page(epoch: u64, facts: &[(&str, String)], sections: &[Section]) -> String {
    let time = DateTime::<Utc>::from_timestamp_millis(epoch.cast_signed()).unwrap_or_default();
    let time = time.format("%Y-%m-%d %H:%M:%S UTC");
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>Assay, {time}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>Assay</h1>\n\
         <p class=\"note\">As of {time}, epoch {epoch}. Version {}.</p>\n<dl>\n",
        env!("CARGO_PKG_VERSION")
    );
    for (name, value) in facts {
        let (name, value) = (escaped(name), escaped(value));
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(page, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    }
    page += "</dl>\n";
    for section in sections {
        page += &shown(section);
    }
    page += "</main>\n</body>\n</html>\n";
    page
}

fn shown(section: &Section) -> String {
    let title = escaped(&section.title);
    let mut html = format!("<section>\n<h2>{title}</h2>\n");
    if !section.note.is_empty() {
        let _ = writeln!(html, "<p class=\"note\">{}</p>", escaped(&section.note));
    }
    if section.rows.is_empty() {
        html += "<p>There is nothing to show.</p>\n</section>\n";
        return html;
    }
    match &section.chart {
        Some((file, _)) => {
            let _ = write!(
                html,
                "<img src=\"{file}\" alt=\"{title}; the numbers are in the table below\">\n\
                 <details>\n<summary>Numbers</summary>\n{}</details>\n",
                table(section)
            );
        }
        None => html += &table(section),
    }
    html += "</section>\n";
    html
}

fn table(section: &Section) -> String {
    let mut html = "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Numbers\">\n<table>\n<thead><tr>".to_owned();
    for name in &section.head {
        let _ = write!(html, "<th scope=\"col\">{}</th>", escaped(name));
    }
    html += "</tr></thead>\n<tbody>\n";
    for row in &section.rows {
        html += "<tr>";
        for (place, cell) in row.iter().enumerate() {
            let cell = escaped(cell);
            let _ = match place {
                0 => write!(html, "<th scope=\"row\">{cell}</th>"),
                _ => write!(html, "<td>{cell}</td>"),
            };
        }
        html += "</tr>\n";
    }
    html += "</tbody>\n</table>\n</div>\n";
    html
}

/// A text that is no markup, whoever wrote it.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_no_markup() {
        let section = Section {
            title: "a & b".to_owned(),
            note: "\"quoted\"".to_owned(),
            chart: None,
            head: vec!["name"],
            rows: vec![vec!["<script>alert('x')</script>".to_owned()]],
        };
        let page = page(0, &[], &[section]);
        assert!(!page.contains("<script"), "{page}");
        for shown in [
            "a &amp; b",
            "&quot;quoted&quot;",
            "&lt;script&gt;alert(&#39;x&#39;)",
            "1970-01-01 00:00:00 UTC",
        ] {
            assert!(page.contains(shown), "{shown} is missing from {page}");
        }
    }
}
