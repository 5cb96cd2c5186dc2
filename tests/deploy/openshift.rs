//! OpenShift's SecurityContextConstraints of the chart: they admit the pod of the chart's DaemonSet, and nothing that it does not need.

use serde_json::{Value, json};

use super::chart::{objects, shipped};

/// What the constraints say against a pod, by the rules of OpenShift's admission (apiserver-library-go, sccmatching and its
/// strategies), as far as this pod has to do with them.
fn refusals(scc: &Value, pod: &Value) -> Vec<String> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut refusals = Vec::new();
    let mut check = |is_right: bool, why: String| {
        if !is_right {
            refusals.push(why);
        }
    };
    for (field, allowed) in
        [("hostNetwork", "allowHostNetwork"), ("hostPID", "allowHostPID"), ("hostIPC", "allowHostIPC")]
    {
        check(pod[field] != true || scc[allowed] == true, field.to_owned());
    }
    for volume in list(&pod["volumes"]) {
        for kind in volume.as_object().unwrap().keys().filter(|it| *it != "name") {
            check(list(&scc["volumes"]).contains(&json!(kind)), format!("volume {kind}"));
            check(kind != "hostPath" || scc["allowHostDirVolumePlugin"] == true, "host directory".to_owned());
        }
    }
    // The token of the service account, which the API server mounts.
    check(list(&scc["volumes"]).contains(&json!("projected")), "token".to_owned());
    for container in list(&pod["initContainers"]).iter().chain(&list(&pod["containers"])) {
        let context = &container["securityContext"];
        let name = &container["name"];
        check(
            context["privileged"] != true || scc["allowPrivilegedContainer"] == true,
            format!("{name} privileged"),
        );
        // Where it is not said, it is forbidden by default.
        let escalates = context["allowPrivilegeEscalation"] == true || context["privileged"] == true;
        check(!escalates || scc["allowPrivilegeEscalation"] == true, format!("{name} escalation"));
        for added in list(&context["capabilities"]["add"]) {
            check(list(&scc["allowedCapabilities"]).contains(&added), format!("{name} capability {added}"));
        }
        check(
            scc["readOnlyRootFilesystem"] != true || context["readOnlyRootFilesystem"] != false,
            format!("{name} root file system"),
        );
        check(context["runAsUser"] == scc["runAsUser"]["uid"], format!("{name} user"));
        let seccomp = match context["seccompProfile"]["type"].as_str() {
            Some("RuntimeDefault") => "runtime/default",
            Some(other) => panic!("{other} is not judged here"),
            // The first that is allowed, which may be any.
            None => "",
        };
        let profiles = list(&scc["seccompProfiles"]);
        check(
            seccomp.is_empty() || profiles.contains(&json!("*")) || profiles.contains(&json!(seccomp)),
            format!("{name} seccomp"),
        );
        check(context["seLinuxOptions"].is_null(), format!("{name} SELinux"));
        for port in list(&container["ports"]) {
            check(port["hostPort"].is_null() || scc["allowHostPorts"] == true, format!("{name} host port"));
        }
    }
    refusals
}

/// The constraints and the pod of the chart with these values, where Helm's engine is at hand to render it.
fn rendered(change: &Value) -> Option<(Value, Value)> {
    let mut change = change.clone();
    change["openshift"] = json!({"securityContextConstraints": {"enabled": true}});
    let objects = objects(&change)?;
    let of = |kind: &str| objects.iter().find(|it| it["kind"] == kind).unwrap().clone();
    let pod = of("DaemonSet")["spec"]["template"]["spec"].clone();
    Some((of("SecurityContextConstraints"), pod))
}

fn privileged() -> Value {
    json!({"privileged": true, "runtimeClassName": ""})
}

#[test]
fn the_constraints_admit_the_pod_of_the_daemonset() {
    for change in
        [json!({}), privileged(), json!({"layouts": {"configMap": "x"}, "driverRoot": "/run/nvidia/driver"})]
    {
        let Some((scc, pod)) = rendered(&change) else { return };
        assert_eq!(refusals(&scc, &pod), Vec::<String>::new(), "{change}");
    }
}

#[test]
fn the_constraints_admit_the_drivers_account_only() {
    let Some((scc, _)) = rendered(&json!({})) else { return };
    let account = json!(["system:serviceaccount:dra-driver-mig:dra-driver-mig"]);
    assert_eq!((&scc["users"], &scc["groups"]), (&account, &json!([])));
}

#[test]
fn the_constraints_refuse_what_the_pod_does_not_need() {
    let Some((scc, pod)) = rendered(&json!({})) else { return };
    let refused = |field: &str, value: Value| {
        let mut pod = pod.clone();
        let (parent, key) = field.rsplit_once('/').unwrap();
        pod.pointer_mut(parent).unwrap()[key] = value;
        refusals(&scc, &pod).len()
    };
    let context = "/containers/0/securityContext";
    for (field, value) in [
        ("/hostNetwork".to_owned(), json!(true)),
        ("/hostPID".to_owned(), json!(true)),
        (format!("{context}/privileged"), json!(true)),
        (format!("{context}/allowPrivilegeEscalation"), json!(true)),
        (format!("{context}/capabilities/add"), json!(["SYS_ADMIN", "NET_ADMIN"])),
        (format!("{context}/readOnlyRootFilesystem"), json!(false)),
        (format!("{context}/seLinuxOptions"), json!({"type": "unconfined_t"})),
        ("/containers/0/ports".to_owned(), json!([{"containerPort": 1, "hostPort": 1}])),
    ] {
        assert!(0 < refused(&field, value), "{field}");
    }
    let Some((_, pod)) = rendered(&privileged()) else { return };
    assert!(
        !refusals(&scc, &pod).is_empty(),
        "a privileged pod needs the constraints of the value `privileged`"
    );
}

#[test]
fn without_the_value_there_are_no_constraints() {
    assert!(shipped().iter().all(|it| it["kind"] != "SecurityContextConstraints"));
}
