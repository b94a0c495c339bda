;; Answers with half a million brackets.
;; plan: the router failed | TOML
(func $plan (param i32 i32) (result i32)
    (drop (memory.grow (i32.const 20)))
    (memory.fill (i32.const 65540) (i32.const 91) (i32.const 524288))
    (i32.store (i32.const 65536) (i32.const 0x203d2061))
    (call $answer_programs (i32.const 0) (i32.const 65536) (i32.const 524288)) (i32.const 0))
