//! Random cases: a few GPUs in our shape or NVIDIA's, some devices taken, some claims.

use serde_json::{Map, Value, json};

const OURS: &str = "mig.dra-driver.dev";
const NVIDIA: &str = "gpu.nvidia.com";
/// Slices of two GPUs per model, as the driver renders them.
const SHAPES: &str = include_str!("shapes.json");

/// SplitMix64.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % u64::try_from(end.max(1)).unwrap()).unwrap()
    }

    pub(crate) fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    pub(crate) fn pick<'v, T>(&mut self, values: &'v [T]) -> &'v T {
        &values[self.below(values.len())]
    }
}

/// A pool before it is cut into slices.
struct Pool {
    driver: String,
    name: String,
    sets: Vec<Value>,
    devices: Vec<Value>,
}

pub(crate) fn case(seed: u64) -> Value {
    let mut random = Random(seed);
    let r = &mut random;
    let mut pools = vec![pool(r, "node")];
    if r.percent(25) {
        let second = pool(r, "node");
        if second.driver != pools[0].driver {
            pools.push(second);
            if r.percent(50) {
                pools[1].name = pools[0].name.clone();
            }
        }
    }
    let mut in_use = Vec::new();
    let taken = if r.percent(70) { r.below(25) } else { 0 };
    for pool in &pools {
        for device in &pool.devices {
            if r.percent(taken) {
                in_use.push(json!({"Driver": pool.driver, "Pool": pool.name, "Device": device["name"]}));
            }
        }
    }
    let claims: Vec<Value> = (0..1 + r.below(2) * r.below(3)).map(|n| claim(r, &pools, n)).collect();
    let mut slices = Vec::new();
    for pool in &pools {
        slices.extend(cut(r, pool, "node"));
    }
    if r.percent(15) {
        let elsewhere = pool(r, "other");
        slices.extend(cut(r, &elsewhere, "other"));
    }
    // The implementations are asked in one order: that of the names.
    slices.sort_by_key(|s| s["metadata"]["name"].as_str().unwrap().to_owned());
    let all = !r.percent(10);
    let features = json!({"AdminAccess": all || r.percent(50), "DeviceTaints": all || r.percent(50),
        "PartitionableDevices": all || r.percent(50), "PrioritizedList": all || r.percent(50)});
    json!({"id": seed, "features": features, "slices": slices, "classes": classes(), "inUse": in_use, "claims": claims,
        "node": {"metadata": {"name": "node", "labels": {"zone": "a", "size": "10"}}}})
}

fn classes() -> Value {
    let class = |name: &str, selector: String| json!({"metadata": {"name": name}, "spec": {"selectors": [{"cel": {"expression": selector}}]}});
    let mut any = class("any", "device.driver != \"\"".into());
    any["spec"]["config"] = json!([{"opaque": {"driver": OURS, "parameters": {"kind": "Any"}}}]);
    let typed = |driver: &str, kind: &str| {
        format!("device.driver == \"{driver}\" && device.attributes[\"{driver}\"].type == \"{kind}\"")
    };
    json!([
        any,
        class("ours-mig", typed(OURS, "mig")),
        class("ours-gpu", typed(OURS, "gpu")),
        class("nvidia-mig", typed(NVIDIA, "mig")),
        class("nvidia-gpu", typed(NVIDIA, "gpu"))
    ])
}

fn pool(r: &mut Random, node: &str) -> Pool {
    let shapes: Value = serde_json::from_str(SHAPES).unwrap();
    let models: Vec<&Value> = shapes.as_object().unwrap().values().collect();
    let slices = r.pick(&models).as_array().unwrap();
    let list = |field: &str| -> Vec<Value> {
        slices.iter().filter_map(|s| s["spec"][field].as_array()).flatten().cloned().collect()
    };
    let (mut sets, mut devices) = (list("sharedCounters"), list("devices"));
    let one_gpu = r.percent(40);
    if one_gpu && !sets.is_empty() {
        sets.truncate(1);
        let kept = sets[0]["name"].clone();
        devices.retain(|d| d["consumesCounters"][0]["counterSet"] == kept);
    }
    let keep = 20 + r.below(80);
    devices.retain(|_| r.percent(keep));
    if devices.is_empty() {
        devices = list("devices")[..1].to_vec();
        sets = list("sharedCounters");
    }
    let few = ["type", "profile", "parentUUID", "productName", "computeSlices", "driverVersion"];
    for device in &mut devices {
        device["attributes"].as_object_mut().unwrap().retain(|key, _| few.contains(&key.as_str()));
        device["capacity"]
            .as_object_mut()
            .unwrap()
            .retain(|key, _| key == "memory" || key == "multiprocessors");
    }
    let nvidia = r.percent(35);
    if nvidia {
        nvidia_shape(&mut sets, &mut devices);
    }
    if r.percent(25) {
        without_counters(&mut sets, &mut devices);
    }
    if r.percent(5) {
        let device = r.below(devices.len());
        devices[device]["attributes"].as_object_mut().unwrap().remove("profile");
    }
    if r.percent(20) {
        taint(r, &mut devices);
    }
    let (driver, name) = if nvidia { (NVIDIA, node.to_owned()) } else { (OURS, format!("{node}/{OURS}")) };
    Pool { driver: driver.to_owned(), name, sets, devices }
}

/// The same GPUs as NVIDIA's driver describes them: names by index, counters for all capacities.
fn nvidia_shape(sets: &mut [Value], devices: &mut [Value]) {
    let rename = |set: &str| if set.contains("1a-00") { "gpu-0" } else { "gpu-1" };
    for set in sets.iter_mut() {
        let gpu = rename(set["name"].as_str().unwrap());
        let counters = set["counters"].as_object_mut().unwrap();
        counters.retain(|name, _| name.starts_with("memory-slice"));
        counters.insert("memory".into(), json!({"value": "81920Mi"}));
        counters.insert("multiprocessors".into(), json!({"value": "132"}));
        set["name"] = json!(format!("{gpu}-counter-set"));
    }
    for device in devices {
        let name = device["name"].as_str().unwrap().to_owned();
        let gpu = rename(&name);
        let rest = name.split_once("-mig-").map(|(_, rest)| format!("-mig-{}", rest.replacen("g-", "g", 1)));
        device["name"] = json!(format!("{gpu}{}", rest.unwrap_or_default()));
        let capacity = device["capacity"].clone();
        if let Some(consumed) = device.get_mut("consumesCounters").and_then(Value::as_array_mut) {
            for set in consumed {
                let counters = set["counters"].as_object_mut().unwrap();
                counters.retain(|name, _| name.starts_with("memory-slice"));
                for name in ["memory", "multiprocessors"] {
                    counters.insert(name.into(), json!({"value": capacity[name]["value"]}));
                }
                set["counterSet"] = json!(format!("{gpu}-counter-set"));
            }
        }
    }
}

/// A set of devices that do not overlap, as without `DRAPartitionableDevices`.
fn without_counters(sets: &mut Vec<Value>, devices: &mut Vec<Value>) {
    let mut used: Vec<(Value, String)> = Vec::new();
    devices.retain_mut(|device| {
        let Some(consumed) = device.as_object_mut().unwrap().remove("consumesCounters") else { return true };
        let set = &consumed[0];
        let names: Vec<_> = set["counters"]
            .as_object()
            .unwrap()
            .keys()
            .filter(|n| n.starts_with("memory-slice"))
            .map(|n| (set["counterSet"].clone(), n.clone()))
            .collect();
        let is_free = names.iter().all(|name| !used.contains(name));
        if is_free {
            used.extend(names);
        }
        is_free
    });
    sets.clear();
}

fn taint(r: &mut Random, devices: &mut [Value]) {
    for device in devices {
        if r.percent(30) {
            let effect = *r.pick(&["NoSchedule", "NoExecute", "None"]);
            let mut taint = json!({"key": *r.pick(&["unhealthy", "reserved"]), "effect": effect});
            if r.percent(50) {
                taint["value"] = json!("x");
            }
            device["taints"] = json!([taint]);
        }
    }
}

/// The slices of a pool, with what can be wrong with them now and then.
fn cut(r: &mut Random, pool: &Pool, node: &str) -> Vec<Value> {
    let mut parts: Vec<Map<String, Value>> = Vec::new();
    if !pool.sets.is_empty() {
        let split = r.percent(15) && pool.sets.len() > 1;
        let sets = if split { pool.sets.chunks(1) } else { pool.sets.chunks(8) };
        parts.extend(sets.map(|sets| Map::from_iter([("sharedCounters".into(), json!(sets))])));
    }
    let size = if r.percent(30) { 1 + r.below(pool.devices.len()) } else { 64 };
    parts.extend(pool.devices.chunks(size).map(|d| Map::from_iter([("devices".into(), json!(d))])));
    let mut count = parts.len();
    if r.percent(4) {
        // Incomplete, or a slice of the old generation is still there.
        count += 1;
    }
    let generation = r.below(3);
    let (selection, per_device) = (r.below(12), r.percent(6));
    let mut slices = Vec::new();
    for (index, mut spec) in parts.into_iter().enumerate() {
        spec.insert("driver".into(), json!(pool.driver));
        spec.insert(
            "pool".into(),
            json!({"name": pool.name, "generation": generation, "resourceSliceCount": count}),
        );
        let is_counters = spec.contains_key("sharedCounters");
        if per_device && !is_counters {
            spec.insert("perDeviceNodeSelection".into(), json!(true));
            for device in spec["devices"].as_array_mut().unwrap() {
                let (field, value) = selector(r, node);
                device[field] = value;
            }
        } else if selection == 0 {
            let (field, value) = selector(r, node);
            spec.insert(field.into(), value);
        } else {
            spec.insert("nodeName".into(), json!(node));
        }
        if r.percent(2) && !is_counters {
            spec["pool"]["generation"] = json!(generation + 1);
        }
        if r.percent(2) && !is_counters {
            let first = spec["devices"][0].clone();
            spec["devices"].as_array_mut().unwrap().push(first);
        }
        if r.percent(2) && !is_counters && !spec["devices"][0]["consumesCounters"].is_null() {
            spec["devices"][0]["consumesCounters"][0]["counterSet"] = json!("nosuch");
        }
        if r.percent(2) && !is_counters {
            spec["devices"][0]["bindingConditions"] = json!(["ready"]);
            spec["devices"][0]["bindingFailureConditions"] = json!(["failed"]);
        }
        if r.percent(2) && is_counters {
            let counters = spec["sharedCounters"][0]["counters"].as_object_mut().unwrap();
            counters.values_mut().next().unwrap()["value"] = json!("0");
        }
        let name = format!("{index:05x}-{}-{node}", pool.driver);
        slices.push(json!({"metadata": {"name": name}, "spec": spec}));
    }
    slices
}

fn selector(r: &mut Random, node: &str) -> (&'static str, Value) {
    match r.below(4) {
        0 => ("allNodes", json!(true)),
        1 => ("nodeName", json!(if r.percent(80) { node } else { "third" })),
        _ => {
            let (key, operator, values) = [
                ("zone", "In", vec!["a", "b"]),
                ("zone", "NotIn", vec!["a"]),
                ("zone", "Exists", vec![]),
                ("rack", "DoesNotExist", vec![]),
                ("size", "Gt", vec!["5"]),
                ("size", "Lt", vec!["5"]),
            ][r.below(6)]
            .clone();
            let requirement = if values.is_empty() {
                json!({"key": key, "operator": operator})
            } else {
                json!({"key": key, "operator": operator, "values": values})
            };
            ("nodeSelector", json!({"nodeSelectorTerms": [{"matchExpressions": [requirement]}]}))
        }
    }
}

fn claim(r: &mut Random, pools: &[Pool], number: usize) -> Value {
    let mut requests = Vec::new();
    let mut names = Vec::new();
    for index in 0..1 + r.below(3) {
        let name = format!("r{index}");
        if r.percent(30) {
            let mut alternatives = Vec::new();
            for alternative in 0..1 + r.below(3) {
                let mut one = body(r, pools);
                one.as_object_mut().unwrap().remove("adminAccess");
                one["name"] = json!(format!("s{alternative}"));
                names.push(format!("{name}/s{alternative}"));
                alternatives.push(one);
            }
            requests.push(json!({"name": name, "firstAvailable": alternatives}));
        } else {
            requests.push(json!({"name": name, "exactly": body(r, pools)}));
        }
        names.push(name);
    }
    let mut devices = json!({ "requests": requests });
    if r.percent(40) {
        let driver = &r.pick(pools).driver;
        let name = *r.pick(&[
            "parentUUID",
            "parentUUID",
            "parentUUID",
            "productName",
            "profile",
            "computeSlices",
            "uuid",
        ]);
        let mut constraint = json!({"matchAttribute": format!("{driver}/{name}")});
        if r.percent(40) {
            constraint["requests"] = json!([r.pick(&names)]);
        }
        devices["constraints"] = json!([constraint]);
        if r.percent(20) {
            let second =
                json!({"matchAttribute": format!("{driver}/productName"), "requests": [r.pick(&names)]});
            devices["constraints"].as_array_mut().unwrap().push(second);
        }
        if r.percent(3) {
            devices["constraints"] = json!([{}]);
        }
    }
    if r.percent(20) {
        let mut config = json!({"opaque": {"driver": OURS, "parameters": {"kind": "X"}}});
        if r.percent(60) {
            config["requests"] = json!([r.pick(&names), r.pick(&names)]);
        }
        devices["config"] = json!([config]);
    }
    json!({"metadata": {"name": format!("c{number}"), "namespace": "default"}, "spec": {"devices": devices}})
}

/// A request without its name.
fn body(r: &mut Random, pools: &[Pool]) -> Value {
    let pool = r.pick(pools);
    let (driver, ours) = (&pool.driver, pool.driver == OURS);
    let (mig, gpu) = if ours { ("ours-mig", "ours-gpu") } else { ("nvidia-mig", "nvidia-gpu") };
    let class = match r.below(100) {
        0..60 => mig,
        60..80 => "any",
        80..98 => gpu,
        _ => "nosuch",
    };
    let mut body = json!({"deviceClassName": class, "allocationMode": "ExactCount", "count": 1});
    match r.below(100) {
        0..70 => {}
        70..88 => body["count"] = json!(2 + r.below(3)),
        88..90 => body["count"] = json!(30 + r.below(5)),
        _ => {
            body["allocationMode"] = json!("All");
            body.as_object_mut().unwrap().remove("count");
        }
    }
    let profiles: Vec<&Value> = pool.devices.iter().map(|d| &d["attributes"]["profile"]["string"]).collect();
    let profile = r.pick(&profiles).as_str().unwrap_or("full");
    let own = format!("device.attributes[\"{driver}\"]");
    let memory = format!("device.capacity[\"{driver}\"].memory");
    let selector = match r.below(26) {
        0..12 => Some(format!("{own}.profile == \"{profile}\"")),
        12 => Some(format!("{memory}.compareTo(quantity(\"15Gi\")) >= 0")),
        13 => Some(format!("{own}.computeSlices >= 2")),
        14 => Some(format!("{own}.?colour.orValue(\"none\") == \"none\" && {own}.computeSlices < 4")),
        15 => Some(format!("{own}.colour == \"red\"")),
        16 => Some(format!("{own}.driverVersion.isGreaterThan(semver(\"570.0.0\"))")),
        17 => Some(format!("cel.bind(a, {own}, a.type == \"mig\" && a.computeSlices == 1)")),
        18 => Some(format!("{own}.profile.startsWith(\"1g\")")),
        19 => Some("device.driver ==".to_owned()),
        _ => None,
    };
    if let Some(selector) = selector {
        body["selectors"] = json!([{"cel": {"expression": selector}}]);
    }
    if r.percent(15) {
        body["tolerations"] = json!([match r.below(3) {
            0 => json!({"operator": "Exists"}),
            1 => json!({"key": "unhealthy", "operator": "Equal", "value": "x", "effect": "NoSchedule"}),
            _ => json!({"key": "reserved", "operator": "Exists"}),
        }]);
    }
    if r.percent(4) {
        body["adminAccess"] = json!(true);
    }
    body
}
