//! `INFO redisdr`: the figures of DR.STATUS for exporters.

use std::ffi::c_int;

use redis_module::raw;
use serde_json::Value;

use super::api::{api, c_text, Ctx};
use super::{guarded, operator};

/// Registers the section.
pub fn register(ctx: Ctx) {
    if api!(RedisModule_RegisterInfoFunc(ctx.0, Some(on_info)) else 1) != 0 {
        ::log::warn!("INFO redisdr is not available on this server");
    }
}

extern "C" fn on_info(info: *mut raw::RedisModuleInfoCtx, for_crash_report: c_int) {
    // A crash report runs in a signal handler, perhaps under a lock of ours.
    if for_crash_report != 0 {
        return;
    }
    guarded((), || {
        api!(RedisModule_InfoAddSection(info, std::ptr::null()) else 1);
        let Some(status) = operator::current_for_info() else { return };
        let Ok(Value::Object(fields)) = serde_json::to_value(&status) else { return };
        for (name, value) in &fields {
            add(info, name, value);
        }
    });
}

fn add(info: *mut raw::RedisModuleInfoCtx, name: &str, value: &Value) {
    let text = |name: &str, v: &str| {
        // A line end or a separator in a value would break the section for parsers.
        let clean: String = v.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let (name, v) = (c_text(name), c_text(&clean));
        api!(RedisModule_InfoAddFieldCString(info, name.as_ptr(), v.as_ptr().cast_mut()) else 1);
    };
    match value {
        Value::Number(n) => {
            let c_name = c_text(name);
            match (n.as_u64(), n.as_i64()) {
                (Some(u), _) => api!(RedisModule_InfoAddFieldULongLong(info, c_name.as_ptr(), u) else 1),
                (_, Some(i)) => api!(RedisModule_InfoAddFieldLongLong(info, c_name.as_ptr(), i) else 1),
                _ => 1,
            };
        }
        Value::String(s) => text(name, s),
        Value::Bool(b) => text(name, if *b { "1" } else { "0" }),
        Value::Null => {}
        Value::Array(items) => {
            text(&format!("{name}_count"), &items.len().to_string());
            if name == "targets" {
                for t in items {
                    let id = t.get("service_id").and_then(Value::as_u64).unwrap_or(0);
                    text(&format!("target{id}"), &pairs(t));
                }
            }
        }
        Value::Object(fields) => {
            for (k, v) in fields {
                add(info, &format!("{name}_{k}"), v);
            }
        }
    }
}

/// `name=value,name=value`, as INFO shows replicas.
fn pairs(value: &Value) -> String {
    let Value::Object(fields) = value else { return String::new() };
    let shown = |v: &Value| v.as_str().map_or_else(|| v.to_string(), |s| s.replace([',', '='], "_"));
    fields.iter().map(|(k, v)| format!("{k}={}", shown(v))).collect::<Vec<_>>().join(",")
}
