;; Answers with a line of a mebibyte, which a parser's message would quote.
;; plan: the router failed | TOML
(func $plan (param i32 i32) (result i32)
    (drop (memory.grow (i32.const 20)))
    (memory.fill (i32.const 65536) (i32.const 120) (i32.const 1048576))
    (call $answer_programs (i32.const 0) (i32.const 65536) (i32.const 1048576)) (i32.const 0))
