package cli

import (
	"fmt"
	"os"
	"strings"

	"certctl/shared/client"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func (a *App) certExport() *cobra.Command {
	c := &cobra.Command{Use: "export REF", Short: "Export a certificate with its private key", Args: between(1, 1), ValidArgsFunction: certs.complete(a, false),
		Long: `Writes the current version with its private key to a file of mode 0600. For admins, audited, and only where the server
holds the key; a key that was made on an agent never leaves it.

The password of PKCS#12 comes from --password-file, from the variable CERTCTL_EXPORT_PASSWORD, or is asked for; it is never
an argument. PEM is written with the key in the clear. pkcs12-legacy is for old Java and Windows only: its encryption is weak.`,
		Example: "  certctl cert export www.example.com --format pkcs12 --password-file pass.txt --file www.p12\n  certctl cert export www.example.com --format pem --file www.pem"}
	format := c.Flags().String("format", "pem", "pem, pkcs12 or pkcs12-legacy")
	file := c.Flags().StringP("file", "f", "", "the file to write (0600); - is stdout")
	passwordFile := c.Flags().String("password-file", "", "file with the password")
	_ = c.MarkFlagRequired("file")
	_ = c.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"pem", "pkcs12", "pkcs12-legacy"}, cobra.ShellCompDirectiveNoFileComp))
	c.RunE = a.run(func(s *session, args []string) error {
		if *format != "pem" && *format != "pkcs12" && *format != "pkcs12-legacy" {
			return usage("--format is one of pem, pkcs12 and pkcs12-legacy")
		}
		id, err := certs.idOf(s, args[0])
		if err != nil {
			return err
		}
		e := client.Export{Format: *format}
		if *format != "pem" {
			if e.Password, err = s.exportPassword(*passwordFile); err != nil {
				return err
			}
		}
		b, err := s.c.Certificates.Export(s.ctx, id, e)
		if err != nil {
			return err
		}
		defer clear(b)
		if *file == "-" {
			_, err = s.out.Write(b)
			return err
		}
		if err := writePrivate(*file, b); err != nil {
			return err
		}
		s.note("%s holds the private key; keep it safe.", *file)
		return nil
	})
	return c
}

// exportPassword takes the password from a file, the environment or a person.
func (s *session) exportPassword(file string) (string, error) {
	p := s.app.Getenv("CERTCTL_EXPORT_PASSWORD")
	if file != "" {
		b, err := os.ReadFile(file) // #nosec G304 -- named by the user
		if err != nil {
			return "", usage("reading the password file: %s", err)
		}
		p = strings.TrimRight(string(b), "\r\n")
	}
	if p == "" && file == "" && isTerminal(s.cmd.InOrStdin()) {
		var err error
		if p, err = s.askSecret("Password for the file"); err != nil {
			return "", err
		}
		again, err := s.askSecret("The same again")
		if err != nil {
			return "", err
		}
		if p != again {
			return "", usage("the two passwords differ")
		}
	}
	if p == "" {
		return "", usage("PKCS#12 needs a password: --password-file, CERTCTL_EXPORT_PASSWORD, or a terminal to ask on")
	}
	return p, nil
}

// askSecret asks without an echo.
func (s *session) askSecret(what string) (string, error) {
	f, ok := s.cmd.InOrStdin().(*os.File)
	if !ok {
		return "", usage("there is no terminal to ask on")
	}
	fmt.Fprintf(s.err, "%s: ", what)
	b, err := term.ReadPassword(int(f.Fd())) // #nosec G115 -- a file descriptor
	fmt.Fprintln(s.err)
	if err != nil {
		return "", fmt.Errorf("reading from the terminal: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
