//! Cases with one device and one request each, about what selectors mean.

use serde_json::{Value, json};

const EXPRESSIONS: &[&str] = &[
    // Attributes and domains.
    r#"A.type == "mig""#,
    r#"A["type"] == "mig""#,
    r#"A.nosuch == "x""#,
    r#"device.attributes["other.example.com"].type == "x""#,
    r#"has(A.type) && !has(A.nosuch)"#,
    r#"has(device.attributes["other.example.com"].type)"#,
    r#"has(device.attributes)"#,
    r#""type" in A && !("nosuch" in A)"#,
    r#""example.com" in device.attributes"#,
    r#""other.example.com" in device.attributes"#,
    r#"A.?type.orValue("") == "mig""#,
    r#"A.?nosuch.hasValue()"#,
    r#"A[?"nosuch"].orValue("none") == "none""#,
    r#"device.attributes[?"other.example.com"].hasValue()"#,
    r#"device.?attributes.hasValue()"#,
    r#"device.attributes["resource.kubernetes.io"].pcieRoot == "pci0""#,
    r#"device.nosuch == "x""#,
    r#"device.driver.nosuch"#,
    r#"size(A) > 3"#,
    r#"A.size() > 3"#,
    r#"size(device.attributes) == 2"#,
    r#"A.exists(k, k == "type")"#,
    r#"A.all(k, k != "nosuch")"#,
    r#"device.attributes.exists(d, d == "example.com")"#,
    r#"device.attributes.all(d, d == "example.com")"#,
    r#"device.attributes["example.com"] == device.attributes["example.com"]"#,
    r#"device == device"#,
    r#"device.allowMultipleAllocations"#,
    // Types.
    r#"A.type"#,
    r#"A.flag"#,
    r#"A.number"#,
    r#"A.type == 1"#,
    r#"A.number == "1""#,
    r#"A.number != "1""#,
    r#"A.number > "1""#,
    r#"A.number > 1.5"#,
    r#"A.number == 2.0"#,
    r#"A.number == 2u"#,
    r#"A.number in [1, 2, 3]"#,
    r#"A.type in ["a", 1, "mig"]"#,
    r#"A.number + 1 == 3"#,
    r#"A.number + "1" == "21""#,
    r#"A.number / 0 == 1"#,
    r#"A.number % 2 == 0 && -A.number == -2"#,
    r#"A.number * 9223372036854775807 > 0"#,
    r#"A.flag > false"#,
    r#"!A.flag"#,
    r#"!A.number"#,
    r#"type(A.type) == string"#,
    r#"type(A.number) == int"#,
    r#"string(A.number) == "2" && int("2") == A.number && double(A.number) == 2.0"#,
    r#"string(A.flag) == "true""#,
    r#"int(A.type) == 1"#,
    r#"dyn(A.number) == 2"#,
    r#"1 + 1"#,
    r#""text""#,
    r#"true"#,
    r#"null == null"#,
    // Errors that another operand decides.
    r#"false && A.nosuch == "x""#,
    r#"A.nosuch == "x" && false"#,
    r#"A.nosuch == "x" || true"#,
    r#"true || A.nosuch == "x""#,
    r#"A.nosuch == "x" && true"#,
    r#"A.number && true"#,
    r#"A.number || true"#,
    r#"true ? A.flag : A.nosuch"#,
    r#"A.nosuch ? true : true"#,
    r#"A.number ? true : true"#,
    r#"[1, 2].exists(x, x / 0 == 1 || x == 2)"#,
    r#"["a", A.type].exists(x, x == A.nosuch || x == "mig")"#,
    // Strings.
    r#"A.type.startsWith("m") && A.type.endsWith("g") && A.type.contains("i")"#,
    r#"A.type.matches("^m.g$")"#,
    r#"A.type.matches("(")"#,
    r#"matches(A.type, "ig")"#,
    r#"A.type.upperAscii() == "MIG" && "MIG".lowerAscii() == A.type"#,
    r#"A.profile.split(".")[0] == "1g""#,
    r#"A.profile.split(".")[5] == "1g""#,
    r#"A.profile.replace("1g", "2g") == "2g.10gb""#,
    r#"A.profile.substring(0, 2) == "1g""#,
    r#"A.profile.substring(9, 20) == "1g""#,
    r#"A.profile.indexOf("g") == 1 && A.profile.lastIndexOf("g") == 5"#,
    r#"A.profile.charAt(0) == "1" && " x ".trim() == "x""#,
    r#"["a", "b"].join("-") == "a-b""#,
    r#"A.type + "x" == "migx""#,
    r#"size(A.type) == 3"#,
    r#"A.type < "z" && A.type >= "mig""#,
    r#"A.profile.find("[0-9]+g") == "1g""#,
    r#"A.profile.findAll("[0-9]+").size() == 2"#,
    r#""%s".format([A.type]) == "mig""#,
    r#"A.type.reverse() == "gim""#,
    r#"A.type.nosuch()"#,
    r#"nosuch(A.type)"#,
    r#"nosuch"#,
    // Lists and maps.
    r#"[1, 2, 3].all(x, x > 0) && [1, 2, 3].exists_one(x, x == 2)"#,
    r#"[1, 2, 3].filter(x, x > 1).size() == 2 && [1, 2].map(x, x * 2) == [2, 4]"#,
    r#"[1, 2, 3].map(x, x > 1, x * 2) == [4, 6]"#,
    r#"{"a": 1}["a"] == 1 && {"a": 1}.a == 1"#,
    r#"{"a": 1}["b"] == 1"#,
    r#"[1, 2][2] == 1"#,
    r#"[1, 2] + [3] == [1, 2, 3]"#,
    r#"[1, 2, 2].sum() == 5 && [1, 2].max() == 2 && [1, 2].isSorted() && [1, 2].indexOf(2) == 1"#,
    r#"sets.contains([1, 2], [2])"#,
    r#"[1, 2].all(i, v, v > i)"#,
    r#"{"a": 1}.exists(k, v, k == "a" && v == 1)"#,
    r#"cel.bind(a, A, a.type == "mig")"#,
    r#"cel.bind(x, 1, cel.bind(y, x + 1, x + y == 3))"#,
    r#"optional.of(A.type).orValue("") == "mig""#,
    r#"optional.none().hasValue()"#,
    r#"A.?type.optMap(t, t + "x").orValue("") == "migx""#,
    // Quantities.
    r#"C.memory.compareTo(quantity("9Gi")) > 0"#,
    r#"C.memory.isGreaterThan(quantity("9Gi")) && C.memory.isLessThan(quantity("10Gi"))"#,
    r#"C.memory == quantity("9984Mi")"#,
    r#"C.memory == quantity("10468982784")"#,
    r#"C.memory > quantity("9Gi")"#,
    r#"C.memory.asInteger() == 10468982784 && C.memory.isInteger()"#,
    r#"C.memory.add(quantity("16Mi")).compareTo(quantity("10000Mi")) == 0"#,
    r#"C.memory.sub(1).isLessThan(C.memory) && C.memory.sign() == 1"#,
    r#"C.memory.asApproximateFloat() > 1.0"#,
    r#"C.nosuch.isInteger()"#,
    r#"device.capacity["other.example.com"].memory.isInteger()"#,
    r#"has(C.memory) && !has(C.nosuch)"#,
    r#"isQuantity("1Gi") && !isQuantity("x")"#,
    r#"quantity("x").isInteger()"#,
    r#"quantity("500m").asInteger() == 1"#,
    r#"C.memory == 5"#,
    r#"C.memory.compareTo("9Gi") > 0"#,
    r#"C.small.isLessThan(C.memory)"#,
    r#"C.all(k, C[k].sign() == 1)"#,
    r#"type(C.memory) == type(quantity("1"))"#,
    // Versions.
    r#"A.version.isGreaterThan(semver("1.2.2")) && A.version.isLessThan(semver("1.3.0"))"#,
    r#"A.version == semver("1.2.3")"#,
    r#"A.version == semver("1.2.3+build")"#,
    r#"A.version.compareTo(semver("1.2.3+build")) == 0"#,
    r#"A.version.major() == 1 && A.version.minor() == 2 && A.version.patch() == 3"#,
    r#"A.version == "1.2.3""#,
    r#"A.version > semver("1.0.0")"#,
    r#"semver("1.2") == A.version"#,
    r#"semver("v1.2", true).minor() == 2 && semver("01.2.3", true).major() == 1"#,
    r#"isSemver("1.2.3") && !isSemver("1.2") && isSemver("v1.2", true)"#,
    r#"semver("1.0.0-alpha").isLessThan(semver("1.0.0"))"#,
    r#"string(A.version) == "1.2.3""#,
    // Others of Kubernetes' libraries.
    r#"ip("10.0.0.1").family() == 4"#,
    r#"cidr("10.0.0.0/8").containsIP("10.1.1.1")"#,
    r#"url("https://a.example").getHost() == "a.example""#,
    r#"duration("1h") > duration("1m")"#,
    r#"timestamp("2026-01-01T00:00:00Z").getFullYear() == 2026"#,
    r#"!format.dns1123Label().validate("abc").hasValue()"#,
    r#"math.greatest(1, 2) == 2"#,
    r#"base64.encode(b"a") == "YQ==""#,
    // Syntax and cost.
    r#"device.driver =="#,
    r#"a b"#,
    r#""#,
    r#"[1,2,3,4,5,6,7,8,9,10].map(a, [1,2,3,4,5,6,7,8,9,10].map(b, [1,2,3,4,5,6,7,8,9,10].map(c, [1,2,3,4,5,6,7,8,9,10].map(d, [1,2,3,4,5,6,7,8,9,10].map(e, [1,2,3,4,5,6,7,8,9,10].map(f, a + b)))))).size() > 0"#,
    r#"[1,2,3,4,5,6,7,8,9,10].all(a, [1,2,3,4,5,6,7,8,9,10].all(b, [1,2,3,4,5,6,7,8,9,10].all(c, [1,2,3,4,5,6,7,8,9,10].all(d, a + b + c + d > 0))))"#,
];

pub(crate) fn cases() -> impl Iterator<Item = Value> {
    EXPRESSIONS.iter().enumerate().map(|(id, expression)| {
        let expression = expression.replace("A.", "device.attributes[\"example.com\"].");
        let expression = replace_bare(&expression, 'A', "device.attributes[\"example.com\"]");
        let expression = expression.replace("C.", "device.capacity[\"example.com\"].");
        let expression = replace_bare(&expression, 'C', "device.capacity[\"example.com\"]");
        case(id, &expression)
    })
}

/// Replaces a letter that stands alone.
fn replace_bare(text: &str, letter: char, by: &str) -> String {
    let mut out = String::new();
    let mut before = ' ';
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '"';
        if c == letter && !is_word(before) && !rest.peek().copied().is_some_and(is_word) {
            out.push_str(by);
        } else {
            out.push(c);
        }
        before = c;
    }
    out
}

fn case(id: usize, expression: &str) -> Value {
    json!({"id": id, "note": expression,
        "features": {"AdminAccess": true, "DeviceTaints": true, "PartitionableDevices": true, "PrioritizedList": true},
        "node": {"metadata": {"name": "node"}},
        "slices": [{"metadata": {"name": "slice"}, "spec": {"driver": "example.com", "nodeName": "node",
            "pool": {"name": "pool", "generation": 1, "resourceSliceCount": 1},
            "devices": [{"name": "device",
                "attributes": {"type": {"string": "mig"}, "profile": {"string": "1g.10gb"}, "number": {"int": 2},
                    "flag": {"bool": true}, "version": {"version": "1.2.3"},
                    "resource.kubernetes.io/pcieRoot": {"string": "pci0"}},
                "capacity": {"memory": {"value": "9984Mi"}, "small": {"value": "500m"}}}]}}],
        "classes": [{"metadata": {"name": "any"}, "spec": {}}],
        "inUse": [],
        "claims": [{"metadata": {"name": "c", "namespace": "default"}, "spec": {"devices": {"requests": [
            {"name": "r", "exactly": {"deviceClassName": "any", "allocationMode": "ExactCount", "count": 1,
                "selectors": [{"cel": {"expression": expression}}]}}]}}}]})
}
