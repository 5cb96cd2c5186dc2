//! As much of PromQL as the alerts use, over recorded samples. The parser is promql-parser's; what is computed here is less
//! than Prometheus does: one sample a minute, `rate` and `increase` between the samples that there are, without
//! extrapolation, and no matching modifiers.

use std::collections::BTreeMap;

use promql_parser::label::{METRIC_NAME, Matchers};
use promql_parser::parser::{
    AggregateExpr, BinaryExpr, Call, Expr, LabelModifier, MatrixSelector, VectorSelector,
};

pub(crate) type Labels = BTreeMap<String, String>;
type Vector = Vec<(Labels, f64)>;

/// A recorded series: a sample for each minute from 0; after the last there is none.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) labels: Labels,
    pub(crate) samples: Vec<f64>,
}

enum Value {
    Scalar(f64),
    Vector(Vector),
}

/// What an expression finds at a minute.
pub(crate) fn vector(expr: &Expr, series: &[Series], minute: usize) -> Vector {
    match value(expr, series, minute) {
        Value::Vector(found) => found,
        Value::Scalar(number) => vec![(Labels::new(), number)],
    }
}

fn value(expr: &Expr, series: &[Series], minute: usize) -> Value {
    match expr {
        Expr::Paren(inner) => value(&inner.expr, series, minute),
        Expr::NumberLiteral(number) => Value::Scalar(number.val),
        Expr::VectorSelector(selector) => Value::Vector(instant(selector, series, minute)),
        Expr::Aggregate(aggregate) => Value::Vector(aggregated(aggregate, series, minute)),
        Expr::Call(call) => Value::Vector(called(call, series, minute)),
        Expr::Binary(binary) => combined(binary, series, minute),
        other => panic!("not evaluated here: {other}"),
    }
}

/// True where a series is meant.
fn is_meant(selector: &VectorSelector, series: &Series) -> bool {
    let empty = String::new();
    let value = |name: &str| {
        if name == METRIC_NAME { &series.name } else { series.labels.get(name).unwrap_or(&empty) }
    };
    let Matchers { matchers, or_matchers } = &selector.matchers;
    assert!(
        or_matchers.is_empty() && selector.offset.is_none() && selector.at.is_none(),
        "not evaluated here"
    );
    selector.name.as_ref() == Some(&series.name) && matchers.iter().all(|it| it.is_match(value(&it.name)))
}

fn instant(selector: &VectorSelector, series: &[Series], minute: usize) -> Vector {
    /// Prometheus looks back so far for the last sample.
    const LOOKBACK: usize = 5;
    let meant = series.iter().filter(|it| is_meant(selector, it));
    let recent = || (minute.saturating_sub(LOOKBACK)..=minute).rev();
    let at = |it: &Series| recent().find_map(|minute| it.samples.get(minute).copied());
    meant.filter_map(|it| Some((it.labels.clone(), at(it)?))).collect()
}

fn range(selector: &MatrixSelector, series: &[Series], minute: usize) -> Vec<(Labels, Vec<f64>)> {
    let minutes = usize::try_from(selector.range.as_secs() / 60).unwrap();
    let meant = series.iter().filter(|it| is_meant(&selector.vs, it));
    let within = |it: &Series| {
        let from = minute.saturating_sub(minutes);
        it.samples.iter().take(minute + 1).skip(from).copied().collect::<Vec<f64>>()
    };
    meant.map(|it| (it.labels.clone(), within(it))).filter(|(_, samples)| !samples.is_empty()).collect()
}

fn called(call: &Call, series: &[Series], minute: usize) -> Vector {
    let args = &call.args.args;
    let over_range = |compute: fn(&[f64], f64) -> Option<f64>| {
        let Expr::MatrixSelector(selector) = &*args[0] else { panic!("{call} takes a range") };
        let found = range(selector, series, minute).into_iter();
        found
            .filter_map(|(labels, samples)| Some((labels, compute(&samples, selector.range.as_secs_f64())?)))
            .collect()
    };
    match call.func.name {
        "rate" => over_range(|samples, seconds| Some(increase(samples)? / seconds)),
        "increase" => over_range(|samples, _| increase(samples)),
        "min_over_time" => over_range(|samples, _| samples.iter().copied().reduce(f64::min)),
        "max_over_time" => over_range(|samples, _| samples.iter().copied().reduce(f64::max)),
        // Labels only of matchers that are equations, which no alert has.
        "absent" => match vector(&args[0], series, minute).is_empty() {
            true => vec![(Labels::new(), 1.0)],
            false => Vec::new(),
        },
        "histogram_quantile" => {
            let Expr::NumberLiteral(quantile) = &*args[0] else { panic!("{call} takes a number") };
            quantiles(quantile.val, vector(&args[1], series, minute))
        }
        name => panic!("not evaluated here: {name}"),
    }
}

/// How much a counter rose; a fall is a restart from zero.
fn increase(samples: &[f64]) -> Option<f64> {
    (1 < samples.len()).then(|| {
        samples.windows(2).map(|pair| if pair[1] < pair[0] { pair[1] } else { pair[1] - pair[0] }).sum()
    })
}

fn quantiles(quantile: f64, buckets: Vector) -> Vector {
    let mut grouped: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
    for (mut labels, count) in buckets {
        let bound = labels.remove("le").unwrap().parse().unwrap();
        grouped.entry(labels).or_default().push((bound, count));
    }
    let of = |mut buckets: Vec<(f64, f64)>| {
        buckets.sort_by(|left, right| left.0.total_cmp(&right.0));
        let rank = quantile * buckets.last()?.1;
        let at = buckets.iter().position(|(_, count)| rank <= *count)?;
        let (bound, count) = buckets[at];
        let (lower, below) = if at == 0 { (0.0, 0.0) } else { buckets[at - 1] };
        let is_open = bound.is_infinite();
        Some(if is_open { lower } else { lower + (bound - lower) * (rank - below) / (count - below) })
    };
    grouped.into_iter().filter_map(|(labels, buckets)| Some((labels, of(buckets)?))).collect()
}

fn aggregated(aggregate: &AggregateExpr, series: &[Series], minute: usize) -> Vector {
    let mut grouped: BTreeMap<Labels, Vec<f64>> = BTreeMap::new();
    for (labels, number) in vector(&aggregate.expr, series, minute) {
        let kept = match &aggregate.modifier {
            None => Labels::new(),
            Some(LabelModifier::Include(by)) => {
                labels.into_iter().filter(|(name, _)| by.labels.contains(name)).collect()
            }
            Some(LabelModifier::Exclude(_)) => panic!("`without` is not evaluated here"),
        };
        grouped.entry(kept).or_default().push(number);
    }
    let join: fn(f64, f64) -> f64 = match aggregate.op.to_string().as_str() {
        "sum" => |left, right| left + right,
        "max" => f64::max,
        "min" => f64::min,
        op => panic!("not evaluated here: {op}"),
    };
    grouped
        .into_iter()
        .filter_map(|(labels, numbers)| Some((labels, numbers.into_iter().reduce(join)?)))
        .collect()
}

fn combined(binary: &BinaryExpr, series: &[Series], minute: usize) -> Value {
    let is_plain = binary.modifier.as_ref().is_none_or(|it| it.matching.is_none() && !it.return_bool);
    assert!(is_plain, "not evaluated here: {binary}");
    let (left, right) = (value(&binary.lhs, series, minute), value(&binary.rhs, series, minute));
    let op = binary.op.to_string();
    match (left, right) {
        (Value::Vector(left), Value::Scalar(right)) => Value::Vector(
            left.into_iter().filter_map(|(labels, it)| Some((labels, computed(&op, it, right)?))).collect(),
        ),
        (Value::Vector(left), Value::Vector(right)) => {
            let right: BTreeMap<Labels, f64> = right.into_iter().collect();
            let paired = left.into_iter().filter_map(|(labels, it)| {
                if op == "unless" {
                    return (!right.contains_key(&labels)).then_some((labels, it));
                }
                let other = *right.get(&labels)?;
                let number = if op == "and" { it } else { computed(&op, it, other)? };
                Some((labels, number))
            });
            Value::Vector(paired.collect())
        }
        (Value::Scalar(_), _) => panic!("not evaluated here: {binary}"),
    }
}

/// The number that is left; nothing where a comparison does not hold.
fn computed(op: &str, left: f64, right: f64) -> Option<f64> {
    #[expect(clippy::float_cmp, reason = "PromQL compares so")]
    let holds = match op {
        "/" => return Some(left / right),
        "-" => return Some(left - right),
        ">" => left > right,
        ">=" => left >= right,
        "<" => left < right,
        "<=" => left <= right,
        "==" => left == right,
        _ => panic!("not evaluated here: {op}"),
    };
    holds.then_some(left)
}

/// Every selector of an expression.
pub(crate) fn selectors(expr: &Expr) -> Vec<&VectorSelector> {
    match expr {
        Expr::VectorSelector(selector) => vec![selector],
        Expr::MatrixSelector(selector) => vec![&selector.vs],
        _ => children(expr).into_iter().flat_map(selectors).collect(),
    }
}

/// Every label by which something is grouped.
pub(crate) fn grouped_by(expr: &Expr) -> Vec<&str> {
    let mut found: Vec<&str> = children(expr).into_iter().flat_map(grouped_by).collect();
    if let Expr::Aggregate(AggregateExpr { modifier: Some(modifier), .. }) = expr {
        found.extend(modifier.labels().labels.iter().map(String::as_str));
    }
    found
}

fn children(expr: &Expr) -> Vec<&Expr> {
    match expr {
        Expr::Aggregate(it) => vec![&it.expr],
        Expr::Unary(it) => vec![&it.expr],
        Expr::Binary(it) => vec![&it.lhs, &it.rhs],
        Expr::Paren(it) => vec![&it.expr],
        Expr::Subquery(it) => vec![&it.expr],
        Expr::Call(it) => it.args.args.iter().map(|it| &**it).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use promql_parser::parser::parse;

    use super::*;

    fn series(name: &str, labels: &[(&str, &str)], samples: &[f64]) -> Series {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Series { name: name.to_owned(), labels, samples: samples.to_vec() }
    }

    fn numbers(query: &str, series: &[Series], minute: usize) -> Vec<f64> {
        vector(&parse(query).unwrap(), series, minute).into_iter().map(|(_, it)| it).collect()
    }

    #[test]
    fn a_restart_of_a_counter_is_an_increase_from_zero() {
        let counter = [series("c_total", &[], &[10.0, 12.0, 1.0, 3.0])];
        assert_eq!(numbers("increase(c_total[3m])", &counter, 3), [5.0]);
        assert_eq!(numbers("rate(c_total[3m])", &counter, 3), [5.0 / 180.0]);
    }

    #[test]
    fn a_quantile_lies_within_its_bucket() {
        let bucket = |le, count| series("h_bucket", &[("le", le)], &[count]);
        let buckets = [bucket("1.0", 5.0), bucket("2.0", 10.0), bucket("+Inf", 10.0)];
        assert_eq!(numbers("histogram_quantile(0.75, h_bucket)", &buckets, 0), [1.5]);
    }

    #[test]
    fn what_is_absent_is_one_and_unless_keeps_what_the_right_does_not_have() {
        let gauges = [series("g", &[("node", "a")], &[7.0]), series("g", &[("node", "b")], &[8.0])];
        assert_eq!(numbers("absent(g)", &gauges, 0), Vec::<f64>::new());
        assert_eq!(numbers("absent(h)", &gauges, 0), [1.0]);
        assert_eq!(numbers("g unless g > 7", &gauges, 0), [7.0]);
    }

    #[test]
    fn what_has_ended_is_forgotten_after_five_minutes() {
        let ended = [series("g", &[], &[1.0, 2.0])];
        assert_eq!(numbers("g", &ended, 6), [2.0]);
        assert_eq!(numbers("g", &ended, 7), Vec::<f64>::new());
    }
}
