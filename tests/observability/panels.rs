//! The dashboard's panels against the schema of Grafana 11: the types of `@grafana/schema` (dashboard, and `panelcfg` of the
//! kinds of panel that are used), as far as the dashboard uses them. What is not declared here is refused, so that a
//! misspelt option, which Grafana would ignore, fails.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::promql::grouped_by;
use super::{interpolated, observability, parsed, shown};

/// Declares strings of which a field takes one.
macro_rules! words {
    ($($name:ident: $($word:literal)|+;)*) => {
        $(
            #[derive(Debug, Clone, Copy, PartialEq, Eq)]
            struct $name;

            impl<'de> Deserialize<'de> for $name {
                fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    let word = String::deserialize(deserializer)?;
                    match word.as_str() {
                        $($word)|+ => Ok(Self),
                        _ => Err(serde::de::Error::custom(format!("{word:?} is no {}", stringify!($name)))),
                    }
                }
            }
        )*
    };
}

/// Declares objects all of whose fields are known.
macro_rules! objects {
    ($($name:ident { $($field:ident: $type:ty,)* })*) => {
        $(
            #[derive(Debug, Deserialize)]
            #[serde(deny_unknown_fields, rename_all = "camelCase")]
            #[allow(dead_code, reason = "that it can be read is the test")]
            struct $name { $($field: $type,)* }
        )*
    };
}

words! {
    Prometheus: "prometheus";
    DatasourceVariable: "${datasource}";
    Reducer: "lastNotNull" | "sum";
    Sizing: "auto" | "manual";
    Color: "green" | "yellow" | "orange" | "red" | "purple" | "blue" | "transparent";
    ColorMode: "thresholds" | "palette-classic" | "continuous-BlPu";
    Absolute: "absolute";
    ValueToText: "value";
    Orientation: "auto" | "horizontal" | "vertical";
    TextMode: "auto" | "value" | "value_and_name" | "name" | "none";
    BigValueColor: "none" | "value" | "background" | "background_solid";
    BigValueGraph: "none" | "line" | "area";
    Justify: "auto" | "center";
    PercentChange: "standard" | "inverted" | "same_as_value";
    BarDisplay: "basic" | "lcd" | "gradient";
    BarValue: "color" | "hidden" | "text";
    BarName: "auto" | "left" | "top" | "hidden";
    LegendDisplay: "list" | "table" | "hidden";
    Side: "bottom" | "right";
    TooltipMode: "single" | "multi" | "none";
    SortOrder: "asc" | "desc" | "none";
    DrawStyle: "line" | "bars" | "points";
    Interpolation: "linear" | "smooth" | "stepBefore" | "stepAfter";
    Visibility: "auto" | "always" | "never";
    Stacking: "none" | "normal" | "percent";
    ThresholdStyle: "off" | "line" | "dashed" | "area" | "line+area" | "dashed+area" | "series";
    CellHeight: "sm" | "md" | "lg" | "auto";
    CellDisplay: "auto" | "color-text" | "color-background" | "gauge";
    Align: "auto" | "left" | "center" | "right";
    ByName: "byName";
    OrganizeFields: "organize";
    TableFormat: "table";
}

objects! {
    Panel {
        id: u32,
        r#type: String,
        title: String,
        description: String,
        grid_pos: Place,
        datasource: Source,
        targets: Vec<Target>,
        field_config: FieldConfig,
        options: Value,
        transformations: Option<Vec<Organize>>,
    }
    Place { x: u32, y: u32, w: u32, h: u32, }
    Source { r#type: Prometheus, uid: DatasourceVariable, }
    Target {
        ref_id: String,
        datasource: Source,
        expr: String,
        legend_format: String,
        instant: Option<bool>,
        range: Option<bool>,
        format: Option<TableFormat>,
    }
    FieldConfig { defaults: Defaults, overrides: Vec<Override>, }
    Defaults {
        unit: Option<String>,
        decimals: Option<u8>,
        min: Option<f64>,
        max: Option<f64>,
        color: Option<ColorOf>,
        thresholds: Option<Thresholds>,
        mappings: Option<Vec<Mapping>>,
        no_value: Option<String>,
        custom: Option<Value>,
    }
    ColorOf { mode: ColorMode, }
    Thresholds { mode: Absolute, steps: Vec<Step>, }
    Step { color: Color, value: Option<f64>, }
    Mapping { r#type: ValueToText, options: BTreeMap<String, Shown>, }
    Shown { text: String, color: Color, index: u32, }
    Override { matcher: Matcher, properties: Vec<Property>, }
    Matcher { id: ByName, options: String, }
    Property { id: String, value: Value, }
    Organize { id: OrganizeFields, options: Columns, }
    Columns {
        exclude_by_name: BTreeMap<String, bool>,
        index_by_name: BTreeMap<String, u32>,
        rename_by_name: BTreeMap<String, String>,
    }
    Reduce { calcs: Vec<Reducer>, fields: String, values: bool, }
    Legend { display_mode: LegendDisplay, placement: Side, show_legend: bool, calcs: Vec<Reducer>, }
    Tooltip { mode: TooltipMode, sort: SortOrder, }
    StatOptions {
        reduce_options: Reduce,
        orientation: Orientation,
        text_mode: TextMode,
        color_mode: BigValueColor,
        graph_mode: BigValueGraph,
        justify_mode: Justify,
        wide_layout: bool,
        show_percent_change: bool,
        percent_change_color_mode: PercentChange,
    }
    BarGaugeOptions {
        reduce_options: Reduce,
        orientation: Orientation,
        display_mode: BarDisplay,
        value_mode: BarValue,
        name_placement: BarName,
        show_unfilled: bool,
        sizing: Sizing,
        min_viz_width: u32,
        min_viz_height: u32,
        max_viz_height: u32,
        legend: Legend,
    }
    SeriesOptions { legend: Legend, tooltip: Tooltip, }
    SeriesCustom {
        draw_style: DrawStyle,
        line_interpolation: Interpolation,
        line_width: u32,
        fill_opacity: u32,
        show_points: Visibility,
        span_nulls: bool,
        stacking: StackingOf,
        thresholds_style: ThresholdsOf,
    }
    StackingOf { mode: Stacking, group: String, }
    ThresholdsOf { mode: ThresholdStyle, }
    TimelineOptions {
        show_value: Visibility,
        row_height: f64,
        merge_values: bool,
        align_value: Align,
        legend: Legend,
        tooltip: Tooltip,
    }
    TimelineCustom { fill_opacity: u32, line_width: u32, }
    TableOptions {
        show_header: bool,
        cell_height: CellHeight,
        frame_index: u32,
        sort_by: Vec<SortBy>,
        footer: Footer,
    }
    SortBy { display_name: String, desc: bool, }
    Footer { show: bool, reducer: Vec<Reducer>, count_rows: bool, }
    TableCustom { align: Align, cell_options: Cell, inspect: bool, }
    Cell { r#type: CellDisplay, }
}

/// Units of Grafana that the dashboard uses.
const UNITS: [&str; 7] = ["short", "string", "percentunit", "s", "ops", "wps", "reqps"];

/// All panels but rows, each of the form that Grafana knows.
fn panels() -> Vec<Panel> {
    let dashboard: Value =
        serde_json::from_slice(&std::fs::read(observability("dashboard.json")).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter().filter(|it| it["type"] != "row");
    panels.map(|it| read(it, it["title"].as_str().unwrap())).collect()
}

fn read<T: DeserializeOwned>(value: &Value, place: &str) -> T {
    T::deserialize(value).unwrap_or_else(|error| panic!("{place}: {error}"))
}

/// Panics with `place` where the value is of another form.
fn must_be<T: DeserializeOwned>(value: &Value, place: &str) {
    let _: T = read(value, place);
}

#[test]
fn every_panel_is_of_the_form_that_grafana_knows() {
    for panel in panels() {
        let title = &panel.title;
        let custom = panel.field_config.defaults.custom.as_ref();
        match panel.r#type.as_str() {
            "stat" => must_be::<StatOptions>(&panel.options, title),
            "bargauge" => must_be::<BarGaugeOptions>(&panel.options, title),
            "timeseries" => {
                must_be::<SeriesOptions>(&panel.options, title);
                must_be::<SeriesCustom>(custom.unwrap(), title);
            }
            "table" => {
                must_be::<TableOptions>(&panel.options, title);
                must_be::<TableCustom>(custom.unwrap(), title);
            }
            "state-timeline" => {
                must_be::<TimelineOptions>(&panel.options, title);
                must_be::<TimelineCustom>(custom.unwrap(), title);
            }
            other => panic!("{title}: no panel {other}"),
        }
        let defaults = &panel.field_config.defaults;
        let unit = defaults.unit.as_deref();
        assert!(unit.is_some_and(|it| UNITS.contains(&it)), "{title}: {unit:?}");
        if let Some(Thresholds { steps, .. }) = &defaults.thresholds {
            assert!(steps[0].value.is_none(), "{title}: the first step has no lower bound");
            let bounds: Vec<f64> = steps[1..].iter().map(|it| it.value.unwrap()).collect();
            assert!(bounds.is_sorted(), "{title}: {bounds:?}");
        }
        for Override { properties, .. } in &panel.field_config.overrides {
            for Property { id, value } in properties {
                match id.as_str() {
                    "mappings" => must_be::<Vec<Mapping>>(value, title),
                    "custom.cellOptions" => must_be::<Cell>(value, title),
                    "unit" => assert!(UNITS.contains(&value.as_str().unwrap()), "{title}: {value}"),
                    "decimals" => assert!(value.is_u64(), "{title}: {value}"),
                    other => panic!("{title}: no property {other}"),
                }
            }
        }
    }
}

#[test]
fn panels_have_a_title_and_a_description_and_do_not_overlap() {
    let panels = panels();
    let titles: BTreeSet<&str> = panels.iter().map(|it| it.title.as_str()).collect();
    assert_eq!(titles.len(), panels.len(), "{titles:?}");
    for panel in &panels {
        assert!(panel.title.len() <= 45 && panel.title.starts_with(char::is_uppercase), "{}", panel.title);
        assert!(panel.description.ends_with('.'), "{}: {:?}", panel.title, panel.description);
    }
    let mut taken = BTreeSet::new();
    for Panel { title, grid_pos: Place { x, y, w, h }, .. } in &panels {
        assert!(x + w <= 24, "{title}");
        for cell in (*x..x + w).flat_map(|x| (*y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "{title} overlaps at {cell:?}");
        }
    }
}

#[test]
fn only_shares_have_a_fixed_maximum() {
    for panel in panels() {
        let Defaults { unit, max, .. } = &panel.field_config.defaults;
        let expected = (unit.as_deref() == Some("percentunit")).then_some(1.0);
        assert!(max.is_none() || *max == expected, "{}: {max:?}", panel.title);
    }
}

#[test]
fn every_column_of_a_table_is_named_or_left_out() {
    let tables: Vec<Panel> = panels().into_iter().filter(|it| it.r#type == "table").collect();
    assert!(3 < tables.len());
    for Panel { title, targets, transformations, field_config, options, .. } in tables {
        // Of several queries Grafana shows one at a time.
        let [Target { expr, instant: Some(true), range: Some(false), format: Some(_), .. }] = &targets[..]
        else {
            panic!("{title}: {targets:?}")
        };
        let [Organize { options: columns, .. }] = &transformations.unwrap()[..] else { panic!("{title}") };
        let expr = parsed(&interpolated(expr), &title);
        let mut left: BTreeSet<&str> = grouped_by(&expr).into_iter().chain(["Time", "Value"]).collect();
        for column in columns.exclude_by_name.keys().chain(columns.rename_by_name.keys()) {
            assert!(left.remove(column.as_str()), "{title}: no column {column}");
        }
        assert!(left.is_empty(), "{title}: {left:?} is not named");
        let named: BTreeSet<&str> = columns.rename_by_name.values().map(String::as_str).collect();
        assert!(named.iter().all(|it| it.starts_with(char::is_uppercase)), "{title}: {named:?}");
        assert!(columns.index_by_name.keys().eq(columns.rename_by_name.keys()), "{title}");
        // Grafana would read a version such as 13.0 as a number.
        assert_eq!(field_config.defaults.unit.as_deref(), Some("string"), "{title}");
        let overridden: BTreeSet<&str> =
            field_config.overrides.iter().map(|it| it.matcher.options.as_str()).collect();
        assert!(overridden.is_subset(&named), "{title}: {overridden:?}");
        let number = columns.rename_by_name.get("Value").map(String::as_str);
        assert!(number.is_none_or(|it| overridden.contains(it)), "{title}: {number:?} has no unit");
        for SortBy { display_name, .. } in read::<TableOptions>(&options, &title).sort_by {
            assert!(named.contains(display_name.as_str()), "{title}: {display_name}");
        }
    }
}

/// Texts by value, of a panel or of a column of it.
fn mapped(panels: &[Panel], title: &str) -> BTreeSet<String> {
    let panel = panels.iter().find(|it| it.title == title).unwrap();
    let overrides = panel.field_config.overrides.iter().flat_map(|it| &it.properties);
    let of_columns =
        overrides.filter(|it| it.id == "mappings").map(|it| read::<Vec<Mapping>>(&it.value, title));
    let of_columns: Vec<Mapping> = of_columns.flatten().collect();
    let own = panel.field_config.defaults.mappings.iter().flatten();
    own.chain(&of_columns).flat_map(|it| it.options.keys().cloned()).collect()
}

#[test]
fn every_value_that_stands_for_a_state_is_shown_as_a_word() {
    let panels = panels();
    let states = &shown().metrics["dra_mig_publication"]["state"];
    assert_eq!(mapped(&panels, "Publication"), *states);
    for title in ["NVML", "Kubelet registration"] {
        assert!(mapped(&panels, title).iter().eq(["0", "1"]), "{title}");
    }
    // The query adds up 1, 2 and 3 for the conditions that are not healthy.
    let health = panels.iter().find(|it| it.title == "GPU health").unwrap();
    let conditions = &shown().metrics["dra_mig_gpu_health"]["condition"];
    assert!(mapped(&panels, "GPU health").iter().eq(["0", "1", "2", "3"]));
    assert_eq!(conditions.len(), 4);
    for condition in conditions.iter().filter(|it| *it != "healthy") {
        assert!(health.targets[0].expr.contains(&format!("condition=\"{condition}\"")), "{condition}");
    }
}
