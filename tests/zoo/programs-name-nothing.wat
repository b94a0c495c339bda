;; Answers with a program over rows that nobody has defined.
;; plan: `ghosts` is not defined
(func $plan (param i32 i32) (result i32)
    (call $answer_programs (i32.const 0) (i32.const 4096) (i32.const 63)) (i32.const 0))
(data (i32.const 4096) "[[program]]\0aops = [\"load-input\", { linear = \"ghosts\" }, \"emit\"]")
