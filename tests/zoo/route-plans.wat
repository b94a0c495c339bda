;; Hands the engine's thread a mebibyte of text to parse, in place of deciding.
;; traps: host function `answer_programs` | in `plan` alone
(func $route (param i32 i32 i32) (result i32)
    (drop (memory.grow (i32.const 20)))
    (loop $l
        (call $answer_programs (i32.const 0) (i32.const 65536) (i32.const 1048576))
        (br $l))
    (i32.const 0))
