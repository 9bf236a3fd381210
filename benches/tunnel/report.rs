//! What is printed: Markdown tables, and the aims at the end.

/// Prints a heading, a line of explanation and a table; the first column is text, the others are numbers.
pub(crate) fn print_table(title: &str, note: &str, head: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells: Vec<String> = cells
            .zip(&widths)
            .enumerate()
            .map(|(i, (cell, &w))| if i == 0 { format!("{cell:<w$}") } else { format!("{cell:>w$}") })
            .collect();
        println!("| {} |", cells.join(" | "));
    };
    println!("### {title}\n\n{note}\n");
    line(&mut head.iter().copied());
    let rules: Vec<String> = widths
        .iter()
        .enumerate()
        .map(|(i, &w)| if i == 0 { "-".repeat(w) } else { format!("{}:", "-".repeat(w.max(2) - 1)) })
        .collect();
    line(&mut rules.iter().map(String::as_str));
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    println!();
}

/// A number the project aims at.
pub(crate) struct Aim {
    pub(crate) what: String,
    pub(crate) measured: f64,
    pub(crate) target: Target,
}

/// On which side of a number the aim lies.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    AtMost(f64),
    Below(f64),
    AtLeast(f64),
}

impl Target {
    fn is_reached(self, measured: f64) -> bool {
        match self {
            Self::AtMost(limit) => measured <= limit,
            Self::Below(limit) => measured < limit,
            Self::AtLeast(limit) => measured >= limit,
        }
    }

    fn describe(self) -> String {
        match self {
            Self::AtMost(limit) => format!("at most {limit}"),
            Self::Below(limit) => format!("below {limit}"),
            Self::AtLeast(limit) => format!("at least {limit}"),
        }
    }
}

pub(crate) fn print_aims(aims: &[Aim]) {
    if aims.is_empty() {
        return;
    }
    println!("Aims:\n");
    for Aim { what, measured, target } in aims {
        let verdict = if target.is_reached(*measured) { "reached" } else { "not reached" };
        println!("- {what}: {measured:.3}, aim {}: {verdict}", target.describe());
    }
}
