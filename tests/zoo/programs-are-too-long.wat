;; Answers with more than is read.
;; plan: host function `answer_programs` | 1048577 elements, at most 1048576
(func $plan (param i32 i32) (result i32)
    (drop (memory.grow (i32.const 20)))
    (call $answer_programs (i32.const 0) (i32.const 65536) (i32.const 1048577)) (i32.const 0))
