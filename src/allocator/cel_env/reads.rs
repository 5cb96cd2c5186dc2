//! What an expression can read of a device, from its text. Devices that are equal in this get the same answer.

use std::collections::BTreeSet;

use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};
use k8s_openapi::api::resource::v1::{Device, DeviceAttribute};

/// The variable.
const DEVICE: &str = "device";

/// Where a value of a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Attribute,
    Capacity,
}

/// An attribute or a capacity.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Read {
    kind: Kind,
    domain: String,
    name: String,
    /// `domain/name`.
    qualified: String,
}

/// The attributes and capacities that an expression can read; the driver's name, too.
#[derive(Debug, Default)]
pub(super) struct Reads(BTreeSet<Read>);

impl Reads {
    /// `None` where the expression has the device, or all of a domain, as a value: it may read anything.
    pub(super) fn of(expression: &IdedExpr) -> Option<Self> {
        let mut reads = Self::default();
        reads.walk(expression)?;
        Some(reads)
    }

    fn walk(&mut self, expression: &IdedExpr) -> Option<()> {
        match &expression.expr {
            Expr::Call(call) => self.call(call),
            Expr::Comprehension(it) => {
                let variables = [Some(&it.iter_var), it.iter_var2.as_ref(), Some(&it.accu_var)];
                if variables.into_iter().flatten().any(|name| is_device(name)) {
                    return None;
                }
                let parts = [&it.iter_range, &it.accu_init, &it.loop_cond, &it.loop_step, &it.result];
                parts.into_iter().try_for_each(|it| self.walk(it))
            }
            Expr::Ident(name) => (!is_device(name)).then_some(()),
            Expr::List(list) => list.elements.iter().try_for_each(|it| self.walk(it)),
            Expr::Literal(_) | Expr::Unspecified => Some(()),
            Expr::Map(map) => map.entries.iter().try_for_each(|it| self.entry(&it.expr)),
            Expr::Select(select) => {
                if let Some((kind, domain)) = domain(&select.operand) {
                    self.add(kind, domain, &select.field);
                    return Some(());
                }
                let of_device = matches!(&select.operand.expr, Expr::Ident(name) if name == DEVICE);
                if of_device && select.field == "driver" { Some(()) } else { self.walk(&select.operand) }
            }
            Expr::Struct(made) => made.entries.iter().try_for_each(|it| self.entry(&it.expr)),
        }
    }

    fn call(&mut self, call: &CallExpr) -> Option<()> {
        // `map[key]`, `map[?key]` and `map.?key` have the map first, `key in map` has it last.
        let read = match (call.func_name.as_str(), call.args.as_slice()) {
            (operators::INDEX | operators::OPT_INDEX | operators::OPT_SELECT, [map, key])
            | (operators::IN, [key, map]) => domain(map).zip(literal(key)),
            _ => None,
        };
        if let Some(((kind, domain), name)) = read {
            self.add(kind, domain, name);
            return Some(());
        }
        call.target.as_deref().into_iter().chain(&call.args).try_for_each(|it| self.walk(it))
    }

    fn entry(&mut self, entry: &EntryExpr) -> Option<()> {
        match entry {
            EntryExpr::StructField(field) => self.walk(&field.value),
            EntryExpr::MapEntry(entry) => {
                self.walk(&entry.key)?;
                self.walk(&entry.value)
            }
        }
    }

    fn add(&mut self, kind: Kind, domain: &str, name: &str) {
        let (domain, name) = (domain.to_owned(), name.to_owned());
        let qualified = format!("{domain}/{name}");
        self.0.insert(Read { kind, domain, name, qualified });
    }

    /// What the expression can read of a driver's device, in a form that is equal only for equal values.
    pub(super) fn values(&self, driver: &str, device: &Device) -> Vec<u8> {
        let mut values = Vec::with_capacity(64);
        put(&mut values, Some(driver));
        for read in &self.0 {
            let own = (read.domain == driver).then_some(&read.name);
            // A device may have a value under both names.
            for name in [Some(&read.qualified), own] {
                match read.kind {
                    Kind::Attribute => {
                        let all = device.attributes.as_ref();
                        put_attribute(&mut values, name.and_then(|it| all?.get(it)));
                    }
                    Kind::Capacity => {
                        let all = device.capacity.as_ref();
                        put(&mut values, name.and_then(|it| Some(all?.get(it)?.value.0.as_str())));
                    }
                }
            }
        }
        values
    }
}

fn is_device(name: &str) -> bool {
    name.trim_start_matches('.') == DEVICE
}

/// The domain of `device.attributes["domain"]` or `device.capacity["domain"]`.
fn domain(expression: &IdedExpr) -> Option<(Kind, &str)> {
    let Expr::Call(call) = &expression.expr else { return None };
    let (operators::INDEX, [map, key]) = (call.func_name.as_str(), call.args.as_slice()) else { return None };
    let Expr::Select(select) = &map.expr else { return None };
    let is_plain = matches!(&select.operand.expr, Expr::Ident(name) if name == DEVICE) && !select.test;
    let kind = match select.field.as_str() {
        "attributes" => Kind::Attribute,
        "capacity" => Kind::Capacity,
        _ => return None,
    };
    Some((kind, literal(key).filter(|_| is_plain)?))
}

fn literal(expression: &IdedExpr) -> Option<&str> {
    match &expression.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}

fn put(values: &mut Vec<u8>, text: Option<&str>) {
    let Some(text) = text else { return values.push(0) };
    values.push(1);
    values.extend(text.len().to_le_bytes());
    values.extend(text.as_bytes());
}

fn put_attribute(values: &mut Vec<u8>, attribute: Option<&DeviceAttribute>) {
    let Some(attribute) = attribute else { return values.push(0) };
    values.push(1);
    put(values, attribute.string.as_deref());
    put(values, attribute.version.as_deref());
    values.extend(attribute.bool.map_or([0, 0], |it| [1, u8::from(it)]));
    values.push(u8::from(attribute.int.is_some()));
    values.extend(attribute.int.unwrap_or_default().to_le_bytes());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::compile;
    use super::*;

    /// `kind:domain/name` of what an expression can read.
    fn reads(expression: &str) -> Option<Vec<String>> {
        let reads = Reads::of(compile(expression).unwrap().expression())?;
        Some(reads.0.iter().map(|it| format!("{:?}:{}", it.kind, it.qualified)).collect())
    }

    #[test]
    fn an_expression_reads_the_attributes_and_capacities_that_it_names() {
        let profile = Some(vec!["Attribute:d/profile".to_owned()]);
        for expression in [
            r#"device.attributes["d"].profile == "1g""#,
            r#"has(device.attributes["d"].profile)"#,
            r#""profile" in device.attributes["d"]"#,
            r#"device.attributes["d"]["profile"] in ["1g", "2g"]"#,
            r#"device.attributes["d"].?profile.orValue("") == "1g""#,
            r#"device.attributes["d"][?"profile"].orValue("") == device.driver"#,
            r#"["1g", "2g"].exists(it, it == device.attributes["d"].profile)"#,
            r#"cel.bind(it, device.attributes["d"].profile, it == "1g" || it == "2g")"#,
            r#"device.attributes["d"].profile.startsWith("1g")"#,
        ] {
            assert_eq!(reads(expression), profile, "{expression}");
        }
        assert_eq!(reads(r#"device.driver == "d""#), Some(vec![]));
        let memory =
            r#"device.capacity["d"].memory.compareTo(quantity("1Gi")) > 0 && device.attributes["e"].x"#;
        assert_eq!(reads(memory), Some(vec!["Attribute:e/x".to_owned(), "Capacity:d/memory".to_owned()]));
    }

    #[test]
    fn an_expression_with_the_device_or_a_domain_as_a_value_may_read_anything() {
        for expression in [
            r#"device.attributes["d"].exists(it, it == "profile")"#,
            r#"size(device.attributes["d"]) > 3"#,
            r#"cel.bind(d, device.attributes["d"], d.profile == "1g")"#,
            r#"cel.bind(it, device, it.attributes["d"].profile == "1g")"#,
            r#"cel.bind(device, {"driver": 1}, device.driver == 1)"#,
            r#""d" in device.attributes"#,
            r#"device.attributes["d"][device.driver] == "1g""#,
            r#"device.attributes[device.driver].profile == "1g""#,
            r#"has(device.attributes) && device.attributes["d"].profile == "1g""#,
            r#"device.attributes["d"] == device.attributes["e"]"#,
            r#"[device].exists(it, it.driver == "d")"#,
            r#"device.attributes[?"d"].hasValue()"#,
        ] {
            assert_eq!(reads(expression), None, "{expression}");
        }
    }

    #[test]
    fn values_differ_where_a_device_differs_in_what_is_read() {
        let device = |attributes: serde_json::Value| -> Device {
            serde_json::from_value(json!({"name": "n", "attributes": attributes})).unwrap()
        };
        let expression = r#"device.attributes["d"].x == "1" && device.attributes["e"].y"#;
        let reads = Reads::of(compile(expression).unwrap().expression()).unwrap();
        let values = |driver: &str, attributes| reads.values(driver, &device(attributes));
        let base = values("d", json!({"x": {"string": "1"}, "uuid": {"string": "a"}}));
        assert_eq!(
            base,
            values("d", json!({"x": {"string": "1"}, "uuid": {"string": "b"}, "e/z": {"int": 1}}))
        );
        for (driver, other) in [
            ("other", json!({"x": {"string": "1"}})),
            ("d", json!({})),
            ("d", json!({"x": {"string": "11"}})),
            ("d", json!({"x": {"version": "1"}})),
            ("d", json!({"x": {"int": 1}})),
            ("d", json!({"x": {"bool": true}})),
            ("d", json!({"x": {"bool": false}})),
            ("d", json!({"x": {"string": "1"}, "d/x": {"string": "1"}})),
            ("d", json!({"x": {"string": "1"}, "e/y": {"string": "1"}})),
        ] {
            assert_ne!(base, values(driver, other.clone()), "{driver} {other}");
        }
    }
}
