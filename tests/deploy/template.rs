//! Renders the chart: the part of Go's text/template and of Helm's functions that the chart uses, and nothing else. What it
//! does not know, a value that does not exist included, is an error, so that the chart cannot say more than is tested.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Value, json};

/// Why a template cannot be rendered.
pub(crate) type Error = String;

enum Node {
    Text(String),
    Print(Pipeline),
    /// Branches with their conditions, and what else.
    If(Vec<(Pipeline, Vec<Node>)>, Vec<Node>),
    With(Pipeline, Vec<Node>),
    Range(Pipeline, Vec<Node>),
}

/// Commands, each of which gets what the one before it gives as its last argument.
type Pipeline = Vec<Vec<Term>>;

enum Term {
    /// From `.` or `$`, and the names that follow.
    Field(bool, Vec<String>),
    Text(String),
    Number(u64),
    Function(String),
}

/// Renders templates with one set of values, and notes which of them are used.
pub(crate) struct Renderer {
    root: Value,
    used: RefCell<BTreeSet<String>>,
}

impl Renderer {
    pub(crate) fn new(values: Value, namespace: &str, app_version: &str) -> Self {
        let root = json!({
            "Values": values,
            "Release": {"Namespace": namespace},
            "Chart": {"AppVersion": app_version},
        });
        Self { root, used: RefCell::default() }
    }

    /// Values that were read, such as `image.tag`.
    pub(crate) fn used(&self) -> BTreeSet<String> {
        self.used.borrow().clone()
    }

    pub(crate) fn render(&self, template: &str) -> Result<String, Error> {
        let mut tokens = tokens(template)?;
        tokens.reverse();
        let (nodes, end) = parse(&mut tokens)?;
        if let Some(end) = end {
            return Err(format!("`{end}` without a beginning"));
        }
        let mut text = String::new();
        self.write(&nodes, &self.root, &mut text)?;
        Ok(text)
    }

    fn write(&self, nodes: &[Node], dot: &Value, text: &mut String) -> Result<(), Error> {
        for node in nodes {
            match node {
                Node::Text(it) => text.push_str(it),
                Node::Print(pipeline) => text.push_str(&printed(&self.evaluate(pipeline, dot)?)?),
                Node::If(branches, otherwise) => {
                    let mut chosen = otherwise;
                    for (condition, nodes) in branches {
                        if is_true(&self.evaluate(condition, dot)?) {
                            chosen = nodes;
                            break;
                        }
                    }
                    self.write(chosen, dot, text)?;
                }
                Node::With(pipeline, nodes) => {
                    let value = self.evaluate(pipeline, dot)?;
                    if is_true(&value) {
                        self.write(nodes, &value, text)?;
                    }
                }
                Node::Range(pipeline, nodes) => {
                    let Value::Array(items) = self.evaluate(pipeline, dot)? else {
                        return Err("range over something that is no list".to_owned());
                    };
                    for item in &items {
                        self.write(nodes, item, text)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn evaluate(&self, pipeline: &Pipeline, dot: &Value) -> Result<Value, Error> {
        let mut piped = None;
        for command in pipeline {
            let mut arguments: Vec<Value> = Vec::new();
            let mut function = None;
            for (index, term) in command.iter().enumerate() {
                match term {
                    Term::Function(name) if index == 0 => function = Some(name.as_str()),
                    Term::Function(name) => return Err(format!("`{name}` is no argument")),
                    Term::Text(text) => arguments.push(text.as_str().into()),
                    Term::Number(number) => arguments.push((*number).into()),
                    Term::Field(from_root, names) => arguments.push(self.field(*from_root, names, dot)?),
                }
            }
            arguments.extend(piped.take());
            piped = Some(match function {
                Some(name) => call(name, &arguments)?,
                None if arguments.len() == 1 => arguments.swap_remove(0),
                None => return Err("several values and no function".to_owned()),
            });
        }
        piped.ok_or_else(|| "nothing to print".to_owned())
    }

    fn field(&self, from_root: bool, names: &[String], dot: &Value) -> Result<Value, Error> {
        let start = if from_root { &self.root } else { dot };
        if let [first, path @ ..] = names
            && first == "Values"
        {
            self.used.borrow_mut().insert(path.join("."));
        }
        let path = || names.join(".");
        names
            .iter()
            .try_fold(start, |value, name| value.get(name))
            .cloned()
            .ok_or_else(|| format!("there is no `{}`", path()))
    }
}

/// As Go's templates and Helm judge it: nothing, zero and empty are false.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(it) => *it,
        Value::Number(it) => it.as_f64() != Some(0.0),
        Value::String(it) => !it.is_empty(),
        Value::Array(it) => !it.is_empty(),
        Value::Object(it) => !it.is_empty(),
    }
}

fn printed(value: &Value) -> Result<String, Error> {
    match value {
        Value::String(it) => Ok(it.clone()),
        // Helm reads every number as a float, and Go prints one of a million and more as 1e+06.
        Value::Number(it) if it.as_f64().is_none_or(|it| 1e6 <= it.abs()) => {
            Err(format!("{it} would be printed with an exponent; use int"))
        }
        Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
        _ => Err(format!("cannot print {value}; use toYaml")),
    }
}

fn call(name: &str, arguments: &[Value]) -> Result<Value, Error> {
    let text = |value: &Value| printed(value);
    Ok(match (name, arguments) {
        ("quote", [it]) => Value::String(text(it)?).to_string().into(),
        ("toYaml", [it]) => yaml(it, 0).into(),
        ("nindent", [Value::Number(count), it]) => {
            let indent = " ".repeat(usize::try_from(count.as_u64().unwrap_or(0)).unwrap_or(0));
            let lines: Vec<String> = text(it)?.lines().map(|line| format!("{indent}{line}")).collect();
            format!("\n{}", lines.join("\n")).into()
        }
        ("int", [Value::Number(it)]) if it.is_i64() => it.to_string().into(),
        ("replace", [from, to, it]) => text(it)?.replace(&text(from)?, &text(to)?).into(),
        ("default", [other, it]) => {
            if is_true(it) {
                it.clone()
            } else {
                other.clone()
            }
        }
        ("eq", [one, two]) => (one == two).into(),
        ("ne", [one, two]) => (one != two).into(),
        ("not", [it]) => (!is_true(it)).into(),
        ("fail", [it]) => return Err(text(it)?),
        _ => return Err(format!("no function `{name}` of {} arguments is known here", arguments.len())),
    })
}

/// As Helm's toYaml writes it: keys sorted, lists not indented.
fn yaml(value: &Value, depth: usize) -> String {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) if !map.is_empty() => {
            let entry = |(key, it): (&String, &Value)| match it {
                Value::Object(inner) if !inner.is_empty() => {
                    format!("{indent}{}:\n{}", scalar(key), yaml(it, depth + 1))
                }
                Value::Array(inner) if !inner.is_empty() => {
                    format!("{indent}{}:\n{}", scalar(key), yaml(it, depth))
                }
                _ => format!("{indent}{}: {}", scalar(key), yaml(it, 0)),
            };
            map.iter().map(entry).collect::<Vec<_>>().join("\n")
        }
        Value::Array(items) if !items.is_empty() => {
            let item = |it: &Value| format!("{indent}- {}", yaml(it, depth + 1).trim_start());
            items.iter().map(item).collect::<Vec<_>>().join("\n")
        }
        Value::String(it) => scalar(it),
        _ => value.to_string(),
    }
}

/// Plain where YAML reads it back as this very text, else quoted.
fn scalar(text: &str) -> String {
    let is_plain = text.starts_with(|it: char| it.is_ascii_alphabetic())
        && text.chars().all(|it| it.is_ascii_alphanumeric() || "._/-".contains(it))
        && !matches!(
            text.to_ascii_lowercase().as_str(),
            "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
        );
    if is_plain { text.to_owned() } else { Value::from(text).to_string() }
}

enum Token {
    Text(String),
    Action(String),
}

/// Texts and actions, with the white space taken away that `{{-` and `-}}` take away.
fn tokens(template: &str) -> Result<Vec<Token>, Error> {
    let (mut found, mut rest, mut trims) = (Vec::new(), template, false);
    loop {
        let (text, action) = rest.split_once("{{").map_or((rest, None), |(text, it)| (text, Some(it)));
        let text = if trims { text.trim_start() } else { text };
        let Some(action) = action else {
            found.push(Token::Text(text.to_owned()));
            return Ok(found);
        };
        let (trims_before, action) = action.strip_prefix("- ").map_or((false, action), |it| (true, it));
        found.push(Token::Text(if trims_before { text.trim_end() } else { text }.to_owned()));
        let (action, after) = action.split_once("}}").ok_or("`{{` without `}}`")?;
        let (action, trims_after) = action.strip_suffix(" -").map_or((action, false), |it| (it, true));
        if !action.trim().starts_with("/*") {
            found.push(Token::Action(action.trim().to_owned()));
        }
        (rest, trims) = (after, trims_after);
    }
}

/// The nodes up to the action that ends them, which is returned, too.
fn parse(tokens: &mut Vec<Token>) -> Result<(Vec<Node>, Option<String>), Error> {
    let mut nodes = Vec::new();
    while let Some(token) = tokens.pop() {
        let action = match token {
            Token::Text(text) => {
                nodes.push(Node::Text(text));
                continue;
            }
            Token::Action(action) => action,
        };
        let (keyword, rest) = action.split_once(' ').unwrap_or((&action, ""));
        let block = |tokens: &mut Vec<Token>| match parse(tokens)? {
            (nodes, Some(end)) if end == "end" => Ok(nodes),
            (_, end) => Err(format!("`{keyword} {rest}` ends with {end:?}")),
        };
        match keyword {
            "end" | "else" => return Ok((nodes, Some(action))),
            "if" => nodes.push(parse_if(rest, tokens)?),
            "with" => nodes.push(Node::With(pipeline(rest)?, block(tokens)?)),
            "range" => nodes.push(Node::Range(pipeline(rest)?, block(tokens)?)),
            _ => nodes.push(Node::Print(pipeline(&action)?)),
        }
    }
    Ok((nodes, None))
}

fn parse_if(condition: &str, tokens: &mut Vec<Token>) -> Result<Node, Error> {
    let mut branches = Vec::new();
    let mut condition = condition.to_owned();
    loop {
        let (nodes, end) = parse(tokens)?;
        branches.push((pipeline(&condition)?, nodes));
        match end.as_deref() {
            Some("end") => return Ok(Node::If(branches, Vec::new())),
            Some("else") => {
                let (nodes, end) = parse(tokens)?;
                if end.as_deref() != Some("end") {
                    return Err(format!("`else` ends with {end:?}"));
                }
                return Ok(Node::If(branches, nodes));
            }
            Some(other) => match other.strip_prefix("else if ") {
                Some(next) => condition = next.to_owned(),
                None => return Err(format!("`if` goes on with `{other}`")),
            },
            None => return Err("`if` without `end`".to_owned()),
        }
    }
}

fn pipeline(text: &str) -> Result<Pipeline, Error> {
    let mut commands = vec![Vec::new()];
    let mut rest = text.trim();
    while !rest.is_empty() {
        let command = commands.last_mut().ok_or("no command")?;
        if let Some(after) = rest.strip_prefix('|') {
            commands.push(Vec::new());
            rest = after.trim_start();
        } else if let Some(quoted) = rest.strip_prefix('"') {
            let (text, after) = quoted.split_once('"').ok_or("a text does not end")?;
            command.push(Term::Text(text.to_owned()));
            rest = after.trim_start();
        } else {
            let (word, after) = rest.split_at(rest.find([' ', '|']).unwrap_or(rest.len()));
            command.push(term(word)?);
            rest = after.trim_start();
        }
    }
    Ok(commands)
}

fn term(word: &str) -> Result<Term, Error> {
    let names = |path: &str| path.split('.').filter(|it| !it.is_empty()).map(str::to_owned).collect();
    if let Some(path) = word.strip_prefix("$.") {
        return Ok(Term::Field(true, names(path)));
    }
    if let Some(path) = word.strip_prefix('.') {
        return Ok(Term::Field(false, names(path)));
    }
    if let Ok(number) = word.parse() {
        return Ok(Term::Number(number));
    }
    if word.bytes().all(|it| it.is_ascii_alphabetic()) {
        return Ok(Term::Function(word.to_owned()));
    }
    Err(format!("`{word}` is not understood here"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(template: &str, values: Value) -> Result<String, Error> {
        Renderer::new(values, "ns", "1.2.3").render(template)
    }

    // Each expectation is what Go's text/template gives, with Helm's functions.
    #[test]
    fn templates_render_as_go_renders_them() {
        let values = json!({"a": "x", "list": ["p+q", "r"], "no": false, "large": 1_000_000_000, "map": {"k": "v", "list": [1, {"b": "true"}]}});
        for (template, expected) in [
            ("{{ .Values.a }}-{{ .Release.Namespace }}", "x-ns"),
            ("a\n{{- if .Values.no }}\nb\n{{- else }}\nc\n{{- end }}\nd", "a\nc\nd"),
            ("{{ if eq .Values.a \"x\" }}yes{{ else if .Values.a }}other{{ end }}", "yes"),
            (
                "l:\n{{- range .Values.list }}\n- {{ . | replace \"+\" \".\" | quote }}-{{ $.Values.a }}\n{{- end }}",
                "l:\n- \"p.q\"-x\n- \"r\"-x",
            ),
            ("m:\n  {{- toYaml .Values.map | nindent 2 }}", "m:\n  k: v\n  list:\n  - 1\n  - b: \"true\""),
            ("{{- with .Values.map }}{{ .k }}{{- end }}  {{ \"\" | default .Chart.AppVersion }}", "v  1.2.3"),
            ("{{ int .Values.large }}", "1000000000"),
            ("a {{- /* said to nobody */ -}} b", "ab"),
        ] {
            assert_eq!(rendered(template, values.clone()).as_deref(), Ok(expected), "{template}");
        }
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        for template in [
            "{{ .Values.missing }}",
            "{{ include \"x\" . }}",
            "{{ .Values.a | upper }}",
            "{{ if .Values.a }}",
            "{{ end }}",
            "{{ .Values.list }}",
            "{{ printf \"%s\" .Values.a }}",
            "{{ $x := .Values.a }}",
            "{{ .Values.a",
            "{{ .Values.large }}",
        ] {
            assert!(
                rendered(template, json!({"a": "x", "list": [1], "large": 1_000_000})).is_err(),
                "{template}"
            );
        }
    }
}
