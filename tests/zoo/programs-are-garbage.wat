;; Answers with what is no TOML.
;; plan: the router failed | TOML
(func $plan (param i32 i32) (result i32)
    (call $answer_programs (i32.const 0) (i32.const 4096) (i32.const 8)) (i32.const 0))
(data (i32.const 4096) "\ff\00[[[[=\0a")
