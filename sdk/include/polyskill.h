/*
 * polyskill router plugins in C: the flat ABI, version 1.
 *
 * One source file makes both kinds of plugin, and they decide alike:
 *
 *   clang --target=wasm32 -O3 -nostdlib -mbulk-memory -msimd128 -Wl,--no-entry router.c -o router.wasm
 *   cc -O3 -shared -fPIC router.c -o router.so
 *
 * A plugin defines `polyskill_v1_init` and `polyskill_v1_plan`, and where it needs them
 * `polyskill_v1_library_changed` and `polyskill_v1_route`. The version is part of the names, so that it is
 * known before any code runs. Every call gets the host, which is passed on to the host's functions below;
 * it must not be kept. There is no clock, no randomness and no I/O: the same input gives the same answer.
 *
 * Texts are UTF-8 with a length, without a closing zero. Structs that the host fills start with their size,
 * set by the caller, so that later minors can add fields at the end.
 */
#ifndef POLYSKILL_H
#define POLYSKILL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What an exported function returns; details go to polyskill_error before. */
enum {
    POLYSKILL_OK = 0,
    /* The next router of the chain should decide. */
    POLYSKILL_ABSTAIN = 1,
    /* Something is missing, such as a module's artefact. */
    POLYSKILL_NOT_READY = 2,
    /* The request's fault: polyskill_error names the parameter. */
    POLYSKILL_INVALID_PARAMETER = 3,
    POLYSKILL_FAILED = 4
};

enum { POLYSKILL_DEBUG, POLYSKILL_INFO, POLYSKILL_WARN, POLYSKILL_ERROR };
enum { POLYSKILL_Q, POLYSKILL_K, POLYSKILL_V, POLYSKILL_O, POLYSKILL_GATE, POLYSKILL_UP, POLYSKILL_DOWN };
/* The feed-forward of a layer with experts, in the place of GATE; such a layer has no UP and DOWN. */
#define POLYSKILL_MLP 0xffffffffu
enum { POLYSKILL_LORA_A, POLYSKILL_LORA_B };
/* How modules combine: the weighted sum of their outputs, or their A and B summed with the weights. */
enum { POLYSKILL_OUTPUT_SUM, POLYSKILL_AB_MERGE };
/* Texts of a module: TAGS come one per line, METADATA takes a key, ALL_METADATA are lines of `key=value`. */
enum {
    POLYSKILL_NAME,
    POLYSKILL_GENERATION,
    POLYSKILL_KIND,
    POLYSKILL_TAGS,
    POLYSKILL_METADATA,
    POLYSKILL_ALL_METADATA
};

typedef struct polyskill_host polyskill_host;

typedef struct {
    uint32_t size; /* sizeof(polyskill_model_info) */
    uint32_t num_layers;
    uint32_t hidden_size;
    uint32_t num_sites; /* above all numbers of sites; layers with experts lack some below it */
    uint32_t num_modules;
} polyskill_model_info;

typedef struct {
    uint32_t size; /* sizeof(polyskill_site_info) */
    uint32_t layer;
    uint32_t projection; /* POLYSKILL_Q ... POLYSKILL_DOWN, or POLYSKILL_MLP */
    uint32_t inputs;
    uint32_t outputs;
} polyskill_site_info;

typedef struct {
    uint32_t size; /* sizeof(polyskill_module_site_info) */
    uint32_t site;
    uint32_t rank;
    float scale;
} polyskill_module_site_info;

typedef struct {
    uint32_t module;
    float weight;
} polyskill_pick;

typedef struct {
    uint32_t size; /* sizeof(polyskill_request) */
    uint32_t num_candidates;
    uint32_t prompt_tokens;
    uint32_t text_length;
    const uint32_t *candidates; /* modules that may be picked, ascending */
    const char *text;           /* the last user message; NULL where there is none */
    uint64_t bucket;            /* the same for the same user or conversation */
} polyskill_request;

/* Rows of one step that one plan decides at one site. */
typedef struct {
    uint32_t size; /* sizeof(polyskill_batch) */
    uint32_t site;
    uint32_t num_rows;
    uint32_t num_columns;
    uint32_t hidden_size; /* 0 unless the program hands the vector over */
    uint32_t num_arguments;
    const uint32_t *candidates; /* [num_columns]: positions in the request's candidates */
    const float *scores;        /* [num_rows][num_columns]; NULL without scores */
    const float *hidden;        /* [num_rows][hidden_size] */
    const float *arguments;     /* [num_arguments], from the program's last op */
} polyskill_batch;

/* Row r picks columns[offsets[r]] ... columns[offsets[r + 1] - 1], with the weights beside them. */
typedef struct {
    uint32_t size;     /* sizeof(polyskill_decision) */
    uint32_t capacity; /* picks that fit in all */
    uint32_t *offsets; /* [num_rows + 1], zero on entry */
    uint32_t *columns;
    float *weights;
} polyskill_decision;

/*
 * The host's functions.
 *
 * Those that return a length copy only what fits into `capacity` in full, and return the length in any
 * case, so that a caller can ask with capacity 0 first; -1 means that there is no such thing.
 */
#define POLYSKILL_HOST_FUNCTIONS(F)                                                                     \
    /* Writes to the host's log. */                                                                     \
    F(void, log, (const polyskill_host *h, uint32_t level, const char *text, uint32_t length),          \
      (h, level, text, length))                                                                         \
    /* 0, or -1 where `site` does not exist. Sites go by their numbers, here as everywhere. */          \
    F(int32_t, model, (const polyskill_host *h, polyskill_model_info *out), (h, out))                        \
    F(int32_t, site, (const polyskill_host *h, uint32_t site, polyskill_site_info *out), (h, site, out))     \
    /* The `at`-th site where a module acts; -1 after the last. */                                      \
    F(int32_t, module_site,                                                                             \
      (const polyskill_host *h, uint32_t module, uint32_t at, polyskill_module_site_info *out),              \
      (h, module, at, out))                                                                             \
    F(int64_t, module_text,                                                                             \
      (const polyskill_host *h, uint32_t module, uint32_t what, const char *key, uint32_t key_length,   \
       char *buffer, uint32_t capacity),                                                                \
      (h, module, what, key, key_length, buffer, capacity))                                             \
    /* A weight, row-major: A is [rank][inputs], B is [outputs][rank]. */                               \
    F(int64_t, tensor,                                                                                  \
      (const polyskill_host *h, uint32_t module, uint32_t site, uint32_t part, float *buffer,           \
       uint32_t capacity),                                                                              \
      (h, module, site, part, buffer, capacity))                                                        \
    F(int64_t, artefact,                                                                                \
      (const polyskill_host *h, uint32_t module, uint32_t site, const char *name, uint32_t length,      \
       float *buffer, uint32_t capacity),                                                               \
      (h, module, site, name, length, buffer, capacity))                                                \
    /* The top right singular vector of B A, [inputs]; exact with 0 iterations, else by power           \
       iteration from `seed`. */                                                                        \
    F(int64_t, singular_vector,                                                                         \
      (const polyskill_host *h, uint32_t module, uint32_t site, uint32_t iterations, uint64_t seed,     \
       float *buffer, uint32_t capacity),                                                               \
      (h, module, site, iterations, seed, buffer, capacity))                                            \
    /* 1 where rows under this name are defined at all of the module's sites. */                        \
    F(int32_t, defined,                                                                                 \
      (const polyskill_host *h, const char *name, uint32_t length, uint32_t module),                    \
      (h, name, length, module))                                                                        \
    /* Gives the row that the op `linear` multiplies with; 0, or -1 with a line in the log. */          \
    F(int32_t, define,                                                                                  \
      (const polyskill_host *h, const char *name, uint32_t length, uint32_t module, uint32_t site,      \
       const float *row, uint32_t row_length),                                                          \
      (h, name, length, module, site, row, row_length))                                                 \
    /* 1 and the value (a flag is 0 or 1), 0 where the parameter is not set, -1 where it is a text. */  \
    F(int32_t, parameter_number,                                                                        \
      (const polyskill_host *h, const char *name, uint32_t length, double *value),                      \
      (h, name, length, value))                                                                         \
    /* -1 where the parameter is not set, -2 where it is no text. */                                    \
    F(int64_t, parameter_text,                                                                          \
      (const polyskill_host *h, const char *name, uint32_t length, char *buffer, uint32_t capacity),    \
      (h, name, length, buffer, capacity))                                                              \
    /* The name of the `at`-th parameter; -1 after the last. */                                         \
    F(int64_t, parameter_name,                                                                          \
      (const polyskill_host *h, uint32_t at, char *buffer, uint32_t capacity),                          \
      (h, at, buffer, capacity))                                                                        \
    /* In init: name and version, and whether a token's choice depends on its prefix alone. */          \
    F(void, describe,                                                                                   \
      (const polyskill_host *h, const char *name, uint32_t name_length, const char *version,            \
       uint32_t version_length, uint32_t causal),                                                       \
      (h, name, name_length, version, version_length, causal))                                          \
    /* Answers of plan: a mixture for every row and site, ... */                                        \
    F(void, answer_fixed,                                                                               \
      (const polyskill_host *h, const polyskill_pick *picks, uint32_t count, uint32_t combine),         \
      (h, picks, count, combine))                                                                       \
    /* ... gate programs in the format of gate files, ... */                                            \
    F(void, answer_programs, (const polyskill_host *h, const char *text, uint32_t length),              \
      (h, text, length))                                                                                \
    /* ... or the candidates that the next router of the chain may use. */                              \
    F(void, answer_narrowed,                                                                            \
      (const polyskill_host *h, const uint32_t *candidates, uint32_t count), (h, candidates, count))    \
    /* Says why the call will not return POLYSKILL_OK; the parameter may be empty. */                   \
    F(void, error,                                                                                      \
      (const polyskill_host *h, const char *parameter, uint32_t parameter_length, const char *message,  \
       uint32_t message_length),                                                                        \
      (h, parameter, parameter_length, message, message_length))

#ifdef __wasm__

#define POLYSKILL_IMPORT(type, name, parameters, arguments) \
    __attribute__((import_module("polyskill_v1"), import_name(#name))) type polyskill_##name parameters;
POLYSKILL_HOST_FUNCTIONS(POLYSKILL_IMPORT)
#define POLYSKILL_EXPORT(name) __attribute__((export_name(#name)))

#else

struct polyskill_host {
    uint32_t size;
    uint32_t reserved;
    void *context;
#define POLYSKILL_FIELD(type, name, parameters, arguments) type(*name) parameters;
    POLYSKILL_HOST_FUNCTIONS(POLYSKILL_FIELD)
};
#define POLYSKILL_CALL(type, name, parameters, arguments) \
    static inline type polyskill_##name parameters { return h->name arguments; }
POLYSKILL_HOST_FUNCTIONS(POLYSKILL_CALL)
#define POLYSKILL_EXPORT(name) __attribute__((visibility("default")))

#endif

/* What a plugin exports. */
POLYSKILL_EXPORT(polyskill_v1_init) int32_t polyskill_v1_init(const polyskill_host *host);
POLYSKILL_EXPORT(polyskill_v1_plan)
int32_t polyskill_v1_plan(const polyskill_host *host, const polyskill_request *request);

/* Optional. `library_changed` hears the modules that came; `route` decides rows. */
POLYSKILL_EXPORT(polyskill_v1_library_changed)
int32_t polyskill_v1_library_changed(const polyskill_host *host, const uint32_t *added, uint32_t count);
POLYSKILL_EXPORT(polyskill_v1_route)
int32_t polyskill_v1_route(const polyskill_host *host, const polyskill_batch *batch,
                           polyskill_decision *decision);

/*
 * Optional, WebAssembly only: where the host may put its arguments. Without it the host grows the memory
 * and uses what is new, which suits C without malloc and any allocator that leaves foreign pages alone.
 */
POLYSKILL_EXPORT(polyskill_v1_alloc) void *polyskill_v1_alloc(uint32_t size);

#ifdef __cplusplus
}
#endif

#endif
