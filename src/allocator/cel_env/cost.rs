//! A bound on the work of an expression, from its text.
//!
//! Upstream estimates when a claim or class is written and counts when it evaluates, each up to 1,000,000 units. This bounds the
//! same units once, before the first evaluation: one per operation, a tenth per character, loops by the size of what they go
//! through. It is coarse; selectors that are in use are below a thousand.

use cel::common::ast::{ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue};

/// Units that an evaluation may cost.
pub(super) const LIMIT: u64 = 1_000_000;

/// Bytes of an expression, as the API server limits it.
pub(super) const MAX_LENGTH: usize = 10 * 1024;

/// The size of a value that is not in the text: strings of devices have at most 64 bytes, maps at most 32 keys.
const UNKNOWN: u64 = 64;

/// What an expression costs at most, and how many elements or characters its value has at most.
#[derive(Clone, Copy)]
struct Bound {
    cost: u64,
    size: u64,
}

/// The most that an evaluation costs.
pub(super) fn of(expression: &IdedExpr) -> u64 {
    bound(expression, &mut Vec::new()).cost
}

/// `sizes` has the variables in scope, the innermost last.
fn bound<'e>(expression: &'e IdedExpr, sizes: &mut Vec<(&'e str, u64)>) -> Bound {
    let sum = |parts: &mut dyn Iterator<Item = &'e IdedExpr>, sizes: &mut Vec<(&'e str, u64)>| {
        parts.map(|part| bound(part, sizes)).fold(Bound { cost: 1, size: 0 }, |sum, part| Bound {
            cost: sum.cost.saturating_add(part.cost),
            size: sum.size.saturating_add(part.size),
        })
    };
    match &expression.expr {
        Expr::Call(call) => {
            let all = sum(&mut call.target.as_deref().into_iter().chain(&call.args), sizes);
            let grows = ["replace", "join"].contains(&call.func_name.as_str());
            let size = if grows { all.size.saturating_mul(all.size) } else { all.size.max(1) };
            Bound { cost: all.cost.saturating_add(all.size / 10), size }
        }
        Expr::Comprehension(comprehension) => looped(comprehension, sizes),
        Expr::Ident(name) => {
            let known = sizes.iter().rev().find(|(known, _)| known == name);
            Bound { cost: 1, size: known.map_or(UNKNOWN, |(_, size)| *size) }
        }
        Expr::List(list) => {
            let all = sum(&mut list.elements.iter(), sizes);
            // Elements may be lists or strings themselves, and a loop's variable is as large as its range.
            Bound { cost: all.cost.saturating_add(10), size: all.size.max(length(list.elements.len())) }
        }
        Expr::Literal(LiteralValue::String(text)) => Bound { cost: 0, size: length(text.inner().len()) },
        Expr::Literal(_) | Expr::Unspecified => Bound { cost: 0, size: 1 },
        Expr::Map(map) => {
            let all = sum(&mut map.entries.iter().flat_map(|entry| parts(&entry.expr)), sizes);
            Bound { cost: all.cost.saturating_add(30), size: all.size.max(length(map.entries.len())) }
        }
        Expr::Select(select) => {
            let operand = bound(&select.operand, sizes);
            Bound { cost: operand.cost.saturating_add(1), size: operand.size.max(UNKNOWN) }
        }
        Expr::Struct(made) => sum(&mut made.entries.iter().flat_map(|entry| parts(&entry.expr)), sizes),
    }
}

fn looped<'e>(loop_: &'e ComprehensionExpr, sizes: &mut Vec<(&'e str, u64)>) -> Bound {
    let range = bound(&loop_.iter_range, sizes);
    let init = bound(&loop_.accu_init, sizes);
    let is_empty = matches!(&loop_.iter_range.expr, Expr::List(list) if list.elements.is_empty());
    let rounds = if is_empty { 0 } else { range.size };
    let before = sizes.len();
    sizes.push((&loop_.iter_var, range.size));
    if let Some(second) = &loop_.iter_var2 {
        sizes.push((second, range.size));
    }
    sizes.push((&loop_.accu_var, init.size.max(rounds)));
    let (condition, step) = (bound(&loop_.loop_cond, sizes), bound(&loop_.loop_step, sizes));
    let result = bound(&loop_.result, sizes);
    sizes.truncate(before);
    let body = condition.cost.saturating_add(step.cost).saturating_mul(rounds);
    let cost = [range.cost, init.cost, body, result.cost].into_iter().fold(0, u64::saturating_add);
    Bound { cost, size: result.size.max(step.size) }
}

fn parts(entry: &EntryExpr) -> Vec<&IdedExpr> {
    match entry {
        EntryExpr::StructField(field) => vec![&field.value],
        EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
    }
}

fn length(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
