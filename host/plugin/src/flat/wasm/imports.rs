//! The host's functions, as a guest imports them.

use wasmtime::{Caller, Engine, Linker};

use super::linear::Linear;
use crate::flat::{self, slice, svd_method};
use crate::state::State;

/// The module of the host's functions.
const IMPORTS: &str = "polyskill_v1";

/// Runs a host function on the caller's memory; a bad pointer traps and names the function.
fn with<T>(
    caller: &mut Caller<'_, State>,
    name: &str,
    call: impl FnOnce(&mut Linear<'_>, &mut State) -> Result<T, String>,
) -> wasmtime::Result<T> {
    let memory = caller.get_export("memory").and_then(wasmtime::Extern::into_memory);
    let Some(memory) = memory else {
        return Err(wasmtime::Error::msg("it exports no memory called `memory`"));
    };
    let (bytes, state) = memory.data_and_store_mut(caller);
    call(&mut Linear(bytes), state)
        .map_err(|reason| wasmtime::Error::msg(format!("host function `{name}`: {reason}")))
}

/// The result of linking some of the functions.
type Linking = wasmtime::Result<()>;
/// The instance that calls a host function.
type Guest<'a> = Caller<'a, State>;

/// Links the host's functions; the first argument of each is the host, which means nothing here.
///
/// Pointers are 32 bits wide, and each function works on the memory that the caller exports as
/// `memory`.
pub(super) fn linker(engine: &Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    link_reading(&mut linker)?;
    link_modules(&mut linker)?;
    link_definitions(&mut linker)?;
    link_answers(&mut linker)?;
    Ok(linker)
}

/// Log, model and parameters.
fn link_reading(linker: &mut Linker<State>) -> Linking {
    linker.func_wrap(IMPORTS, "log", |mut c: Guest<'_>, _: u32, level: u32, t: u32, n: u32| {
        with(&mut c, "log", |m, s| flat::log(m, s, level, slice(t, n)))
    })?;
    linker.func_wrap(IMPORTS, "model", |mut c: Guest<'_>, _: u32, out: u32| {
        with(&mut c, "model", |m, s| flat::model(m, s, out.into()))
    })?;
    linker.func_wrap(IMPORTS, "site", |mut c: Guest<'_>, _: u32, site: u32, out: u32| {
        with(&mut c, "site", |m, s| flat::site(m, s, site, out.into()))
    })?;
    linker.func_wrap(
        IMPORTS,
        "parameter_number",
        |mut c: Guest<'_>, _: u32, t: u32, n: u32, out: u32| {
            let call = |m: &mut Linear<'_>, s: &mut State| {
                flat::parameter_number(m, s, slice(t, n), out.into())
            };
            with(&mut c, "parameter_number", call)
        },
    )?;
    linker.func_wrap(
        IMPORTS,
        "parameter_text",
        |mut c: Guest<'_>, _: u32, t: u32, n: u32, buffer: u32, capacity: u32| {
            let call = |m: &mut Linear<'_>, s: &mut State| {
                flat::parameter_text(m, s, slice(t, n), slice(buffer, capacity))
            };
            with(&mut c, "parameter_text", call)
        },
    )?;
    linker.func_wrap(
        IMPORTS,
        "parameter_name",
        |mut c: Guest<'_>, _: u32, at: u32, buffer: u32, capacity: u32| {
            let call = |m: &mut Linear<'_>, s: &mut State| {
                flat::parameter_name(m, s, at, slice(buffer, capacity))
            };
            with(&mut c, "parameter_name", call)
        },
    )?;
    Ok(())
}

/// Cards, weights and artefacts.
fn link_modules(linker: &mut Linker<State>) -> Linking {
    linker.func_wrap(
        IMPORTS,
        "module_site",
        |mut c: Guest<'_>, _: u32, module: u32, at: u32, out: u32| {
            with(&mut c, "module_site", |m, s| flat::module_site(m, s, module, at, out.into()))
        },
    )?;
    linker.func_wrap(
        IMPORTS,
        "module_text",
        |mut c: Guest<'_>, _: u32, module: u32, what: u32, t: u32, n: u32, out: u32, cap: u32| {
            let call = |m: &mut Linear<'_>, s: &mut State| {
                flat::module_text(m, s, module, what, slice(t, n), slice(out, cap))
            };
            with(&mut c, "module_text", call)
        },
    )?;
    linker.func_wrap(
        IMPORTS,
        "tensor",
        |mut c: Guest<'_>, _: u32, module: u32, site: u32, part: u32, out: u32, cap: u32| {
            let call = |m: &mut Linear<'_>, s: &mut State| {
                flat::tensor(m, s, module, site, part, slice(out, cap))
            };
            with(&mut c, "tensor", call)
        },
    )?;
    linker.func_wrap(
        IMPORTS,
        "artefact",
        |mut c: Guest<'_>, _: u32, module: u32, site: u32, t: u32, n: u32, out: u32, cap: u32| {
            let call = |m: &mut Linear<'_>, s: &mut State| {
                flat::artefact(m, s, module, site, slice(t, n), slice(out, cap))
            };
            with(&mut c, "artefact", call)
        },
    )?;
    linker.func_wrap(
        IMPORTS,
        "singular_vector",
        |mut c: Guest<'_>,
         _: u32,
         module: u32,
         site: u32,
         n: u32,
         seed: u64,
         out: u32,
         cap: u32| {
            let call = |m: &mut Linear<'_>, s: &mut State| {
                flat::singular_vector(m, s, module, site, svd_method(n, seed), slice(out, cap))
            };
            with(&mut c, "singular_vector", call)
        },
    )?;
    Ok(())
}

/// Rows for programs.
fn link_definitions(linker: &mut Linker<State>) -> Linking {
    linker.func_wrap(
        IMPORTS,
        "defined",
        |mut c: Guest<'_>, _: u32, t: u32, n: u32, module: u32| {
            with(&mut c, "defined", |m, s| flat::defined(m, s, slice(t, n), module))
        },
    )?;
    linker.func_wrap(
        IMPORTS,
        "define",
        |mut c: Guest<'_>, _: u32, t: u32, n: u32, module: u32, site: u32, row: u32, len: u32| {
            let call = |m: &mut Linear<'_>, s: &mut State| {
                flat::define(m, s, slice(t, n), module, site, slice(row, len))
            };
            with(&mut c, "define", call)
        },
    )?;
    Ok(())
}

/// Descriptor, plans and errors.
fn link_answers(linker: &mut Linker<State>) -> Linking {
    linker.func_wrap(
        IMPORTS,
        "describe",
        |mut c: Guest<'_>, _: u32, t: u32, n: u32, v: u32, len: u32, causal: u32| {
            let call = |m: &mut Linear<'_>, s: &mut State| {
                flat::describe(m, s, slice(t, n), slice(v, len), causal)
            };
            with(&mut c, "describe", call)
        },
    )?;
    linker.func_wrap(
        IMPORTS,
        "answer_fixed",
        |mut c: Guest<'_>, _: u32, p: u32, n: u32, how: u32| {
            with(&mut c, "answer_fixed", |m, s| flat::answer_fixed(m, s, slice(p, n), how))
        },
    )?;
    linker.func_wrap(IMPORTS, "answer_programs", |mut c: Guest<'_>, _: u32, t: u32, n: u32| {
        with(&mut c, "answer_programs", |m, s| flat::answer_programs(m, s, slice(t, n)))
    })?;
    linker.func_wrap(IMPORTS, "answer_narrowed", |mut c: Guest<'_>, _: u32, p: u32, n: u32| {
        with(&mut c, "answer_narrowed", |m, s| flat::answer_narrowed(m, s, slice(p, n)))
    })?;
    linker.func_wrap(
        IMPORTS,
        "error",
        |mut c: Guest<'_>, _: u32, p: u32, len: u32, t: u32, n: u32| {
            with(&mut c, "error", |m, s| flat::error(m, s, slice(p, len), slice(t, n)))
        },
    )?;
    Ok(())
}
